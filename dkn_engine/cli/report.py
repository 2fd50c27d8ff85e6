"""``dkn-engine report``: a run directory's results again, and its page."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dkn_engine.cli.console import Console
from dkn_engine.cli.results import HELD, ROWS, read_overview, show_results
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from dkn_engine.report import Summary


def report(args: argparse.Namespace) -> int:
    """``dkn-engine report``: a run directory's results again, complete or not.

    Raises:
        RunDirectoryError: it is not a run directory.
    """
    from dkn_engine.report.files import read_summary
    from dkn_engine.store import Snapshot, count_done

    console = Console(quiet=args.quiet)
    done, total = count_done(args.directory)
    if done < total:
        console.say(
            f"{done} of {total} facts are there; the command that began the run continues it"
        )
    results = Snapshot(args.directory)
    overview = read_overview(results, None if args.all else HELD)
    # What only the run itself knew.
    earlier = read_summary(args.directory)
    figures = earlier.get("summary", {})
    seconds = figures.get("seconds") if figures.get("n_facts") == overview.summary.n_facts else None
    problems = earlier.get("problems", [])
    limit = None if args.all else ROWS
    try:
        show_results(args.directory, overview, problems, seconds, as_json=args.json, limit=limit)
    except PermissionError as error:  # Someone else's run can still be read.
        console.warn(f"the summary was not rewritten: {error.filename}: {error.strerror}")
        return 0
    summary = replace(overview.summary, seconds=seconds, n_left_out=len(problems))
    _write_page(args, results, summary, problems, console)
    return 0


def _write_page(
    args: argparse.Namespace,
    results: Iterable[FactResult],
    summary: Summary,
    problems: Sequence[Mapping[str, Any]],
    console: Console,
) -> None:
    """The page and its figures; without matplotlib the page alone, which is said."""
    from dkn_engine.report.html import NO_FIGURES, write_page
    from dkn_engine.store import as_folder, place_of

    console.say("drawing figures and writing the page ...")
    with as_folder(args.directory, "manifest.json") as folder:
        written, drawn = write_page(
            folder,
            results,
            summary,
            problems=problems,
            cards=args.cards,
            fact_figures=args.fact_figures,
        )
    place = place_of(args.directory)
    page = place.at(written.name)
    if drawn:
        console.say(f"{page} is written, its figures are in {place.at('figures')}")
    else:
        console.say(f"{page} is written")
        console.warn(NO_FIGURES)
