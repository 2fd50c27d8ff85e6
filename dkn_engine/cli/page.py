"""The page of a run directory, for the commands that write it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dkn_engine.cli.console import Console
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from dkn_engine.report import Summary
    from dkn_engine.store import RunPath


def write_run_page(
    directory: RunPath,
    results: Iterable[FactResult],
    summary: Summary,
    problems: Sequence[Mapping[str, Any]],
    console: Console,
    **most: Any,
) -> str:
    """Draw the figures and write ``report.html``; says so, and where it is.

    ``most`` are the numbers of cards and figures that :func:`dkn_engine.report.html.write_page`
    takes.

    Raises:
        OSError: the directory cannot be written.
    """
    from dkn_engine.report.html import NO_FIGURES, write_page
    from dkn_engine.store import as_folder, place_of

    console.say("drawing figures and writing the page ...")
    with as_folder(directory, "manifest.json") as folder:
        written, drawn = write_page(folder, results, summary, problems=problems, **most)
    if not drawn:
        console.warn(NO_FIGURES)
    return place_of(directory).at(written.name)
