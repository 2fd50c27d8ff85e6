"""What a notebook shows of a record, and the pages and figures that a record makes of itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.files.atomic import write_files
from dkn_engine.files.local_paths import local_path
from dkn_engine.report.analysis_text import blocks_of
from dkn_engine.report.cards import components_table
from dkn_engine.report.content import (
    Block,
    Figures,
    Heading,
    Paragraph,
    Section,
    Table,
    Tiles,
    cell_text,
    number,
)
from dkn_engine.report.drawings import pictures_of
from dkn_engine.report.family import about_family
from dkn_engine.report.figures import available
from dkn_engine.report.files import write_summary
from dkn_engine.report.html.files import write_page
from dkn_engine.report.html.page import render_blocks
from dkn_engine.report.run import FACTS, STATUS_WORDS, facts_table, run_report
from dkn_engine.report.summary import Summary, summarize
from dkn_engine.statistics.intervals import mean_estimate
from dkn_engine.statistics.words import interval, words
from dkn_engine.store import RunPath, as_folder
from dkn_engine.types import Attribution, FactResult

if TYPE_CHECKING:
    from dkn_engine.results import Results, RunComparison
    from dkn_engine.statistics import table as statistics

_MOST_ROWS = 50


def results_html(results: Results) -> str:
    """How many facts there are and have a DKN, and the table of them, 50 at most."""
    rows = results[:_MOST_ROWS]
    blocks: list[Block] = [Paragraph(repr(results).strip("<>").removeprefix("Results: "))]
    blocks += facts_table(rows, None, len(rows)).blocks
    if more := len(results) - len(rows):
        blocks.append(Paragraph(f"… and {more:,} more facts."))
    return render_blocks(blocks)


def fact_html(result: FactResult) -> str:
    """A fact: its graph and lattice if matplotlib is installed, its DKN, its components."""
    blocks: list[Block] = [Heading(f"{result.prompt or result.fact_id} → {result.answer}")]
    if result.status != "ok":
        blocks.append(Paragraph(f"{STATUS_WORDS[result.status]}: {result.reason}"))
        return render_blocks(blocks)
    blocks.append(
        Paragraph(
            f"p = {cell_text(result.probability)}, {len(result.neurons):,} knowledge neurons in "
            f"{len(result.components):,} candidate components"
        )
    )
    if available() and len(result.neurons):
        blocks.append(Figures(pictures_of(result)))
    if result.components:
        blocks += [Paragraph(about_family(result)), components_table(result)]
    return render_blocks(blocks)


def comparison_html(comparison: RunComparison) -> str:
    """In which runs facts have a DKN, and the mean changes with their intervals."""
    rows: list[tuple[object, ...]] = []
    for name, values in (("jaccard", comparison.jaccard), *comparison.changes.items()):
        found = mean_estimate(values)
        what = "overlap of neurons (Jaccard)" if name == "jaccard" else f"change of {name}"
        rows.append((what, found.n, found.mean, found.median, interval(found, 3)))
    columns = ("", number("facts"), number("mean"), number("median"), number("mean [95 %]"))
    counts = comparison.counts()
    left_out = {
        "not known in both": comparison.not_known,
        "in the first run alone": comparison.only_first,
        "in the second run alone": comparison.only_second,
    }
    said = [
        f"{len(comparison.fact_ids):,} facts known in both runs: {counts['both']:,} with a DKN in "
        f"both, {counts['first']:,} in the first alone, {counts['second']:,} in the second alone, "
        f"{counts['none']:,} in none.",
        *(f"Other facts, {words}: {len(ids):,}." for words, ids in left_out.items() if ids),
    ]
    return render_blocks([*map(Paragraph, said), Table(columns, rows, "Second run minus first")])


def analysis_html(table: statistics.Table) -> str:
    """An analysis's figures, 50 rows at most, the differences that were found, and its notes."""
    title = Heading(words(table.analysis).capitalize())
    return render_blocks([title, *blocks_of(table, _MOST_ROWS)])


def summary_html(summary: Summary) -> str:
    """The headline figures, and drops beside those of controls."""
    sections = run_report(summary, Section(FACTS, ())).sections
    blocks = [block for section in sections for block in section.blocks]
    return render_blocks([_as_table(b) if isinstance(b, Tiles) else b for b in blocks])


def _as_table(tiles: Tiles) -> Table:
    """Tiles need the page's style."""
    columns = ("headline", number("value"), "of what")
    return Table(columns, [(tile.label, tile.value, tile.note) for tile in tiles.tiles])


def attribution_html(found: Attribution) -> str:
    """Each fact with its neurons of the highest scores, 50 facts at most."""
    rows = [
        (fact_id, p, ", ".join(f"L{l}:{j}" for l, j in best.tolist()))
        for (fact_id, best), p in zip(found.top(5).items(), found.probability, strict=True)
    ]
    n_facts, n_layers, width = found.scores.shape
    said = f"Scores of {n_layers:,} layers of {width:,} neurons, {n_facts:,} facts"
    columns = ("fact", number("p"), "highest scores, layer:index")
    blocks: list[Block] = [Table(columns, rows[:_MOST_ROWS], said)]
    if (more := len(rows) - _MOST_ROWS) > 0:
        blocks.append(Paragraph(f"… and {more:,} more facts."))
    return render_blocks(blocks)


def summary_of(results: Results) -> Summary:
    """The headline figures."""
    return summarize(results)


def write_summaries(results: Results, out: RunPath, problems: Sequence[Mapping[str, Any]]) -> None:
    """``summary.md`` and ``summary.json`` of a run directory, as ``dkn-engine find`` writes them.

    Args:
        results: of the run, all of them.
        out: its directory.
        problems: facts that the loader left out.
    """
    with as_folder(out, "manifest.json") as folder:
        write_summary(folder, results, summarize(results), problems=problems)


def write_report(results: Results, path: str | Path) -> Path:
    """The page of results as one file; see :meth:`dkn_engine.results.Results.report`."""
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page, _ = write_page(folder, results, summarize(results))
        write_files(path.parent, {path.name: page.read_bytes()})
    return path
