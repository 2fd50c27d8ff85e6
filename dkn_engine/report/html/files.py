"""``report.html`` and ``figures`` of a run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dkn_engine.files.atomic import write_files
from dkn_engine.files.local_paths import local_path
from dkn_engine.report.cards import fact_cards
from dkn_engine.report.content import Figure
from dkn_engine.report.drawings import FOLDER, draw_fact, draw_run, facts_to_draw
from dkn_engine.report.figures.style import HOW_TO_GET, available
from dkn_engine.report.files import manifest_of
from dkn_engine.report.html.page import render_page
from dkn_engine.report.run import run_report
from dkn_engine.report.shared_neurons import shared_neurons
from dkn_engine.report.summary import Summary
from dkn_engine.types import FactResult

PAGE = "report.html"
CARDS = 200
FACT_FIGURES = 12
NO_FIGURES = f"{PAGE} has no figures, since matplotlib is not installed; to get them: {HOW_TO_GET}"


def write_page(
    directory: str | Path,
    results: Iterable[FactResult],
    summary: Summary,
    *,
    problems: Sequence[Mapping[str, Any]] = (),
    cards: int = CARDS,
    fact_figures: int = FACT_FIGURES,
    figures: bool = True,
) -> tuple[Path, bool]:
    """Draw the figures, then write the page, atomically.

    Args:
        directory: a run directory, or any directory (the page then names no model).
        results: all results, in the order of the facts; read once, and of those without a card
            only what the figures of the run need is held.
        summary: of those results.
        problems: facts that the loader left out (``file``, ``line``, ``id``, ``reason``).
        cards: most facts with a card.
        fact_figures: most facts with figures of their own: those with a DKN first.
        figures: False draws none, which takes most of the time.

    Returns:
        The page's path, and whether it has figures: it has none without matplotlib, and says so.

    Raises:
        OSError: the directory cannot be written.
    """
    directory = local_path(directory)
    held = [r if i < cards else in_short(r) for i, r in enumerate(results)]
    drawn: dict[str, Figure] = {}
    of_facts: dict[int, list[Figure]] = {}
    if has_figures := figures and available():
        folder = directory / FOLDER
        drawn = draw_run(folder, held, summary)
        for i in facts_to_draw(held[:cards], fact_figures):
            of_facts[i] = draw_fact(folder, held[i], i + 1)
    report = run_report(
        summary,
        fact_cards(held, of_facts, cards),
        manifest=manifest_of(directory),
        problems=problems,
        figures=drawn,
        shared=shared_neurons(held),
        notes=() if has_figures or not figures else (f"{NO_FIGURES}.",),
    )
    page = render_page(report)
    write_files(directory, {PAGE: page.encode("utf-8")})
    return directory / PAGE, has_figures


def in_short(result: FactResult) -> FactResult:
    """A result without its largest arrays, for one of many thousands."""
    empty = FactResult(result.fact_id, result.status)
    large = ("scores", "connection_weights", "subset_probabilities", "subset_masks")
    names = (
        *large,
        "subset_objective",
        "pair_interactions",
        "rest_suppressed",
        "convergence_delta",
    )
    return dataclasses.replace(result, **{name: getattr(empty, name) for name in names})
