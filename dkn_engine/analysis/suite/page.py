"""The page of a grid of analyses: what was found, the figures, and every number below them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dkn_engine.analysis.suite.answers import answer, spelled_out
from dkn_engine.analysis.suite.cells import Cell
from dkn_engine.analysis.suite.headlines import HEADLINES, Headline
from dkn_engine.analysis.suite.requests import RUN
from dkn_engine.report import figures
from dkn_engine.report.analysis_text import figure_tables
from dkn_engine.report.comparisons import comparison_table
from dkn_engine.report.content import (
    Block,
    Figure,
    Figures,
    Fold,
    Link,
    Report,
    Section,
    Table,
    Tile,
    Tiles,
    number,
    paragraphs,
)
from dkn_engine.report.html import render_page
from dkn_engine.report.reading import DISPUTED
from dkn_engine.statistics import table as statistics
from dkn_engine.statistics.intervals import wilson_share
from dkn_engine.statistics.words import cell as shown
from dkn_engine.statistics.words import counted, share_interval, words

PAGE, FIGURES = "report.html", "figures"
# Which differ in grey, too; Rnd and none are hatched as controls.
FILLS = {"D": figures.DARK, "N": figures.MAIN, "Rnd": figures.PAPER, "none": figures.LIGHT}
TITLE = "Analyses of degenerate knowledge neurons"
GROUPS = (
    "D: the neurons of a fact's DKN. N: all its knowledge neurons. Rnd: random neurons, as many as "
    "in D in each layer and none of them in N. Intervals are 95%, of six values or more; p-values "
    "of paired comparisons are corrected for the number of comparisons in a table (Holm)."
)
ABOUT = {
    "robustness": "Do answers survive when neurons are suppressed, and do perturbed queries come "
    "back when they are enhanced?",
    "fact_check": "Can the attribution of a statement's answer tell whether it is true?",
    "evolvability": "Are these the neurons that learn new facts, and is it enough to train them?",
    "complexity": "Does degeneracy change when the same facts are asked in longer texts?",
    "sharing": "How much of a component do other facts use, too?",
    "complexity_of_models": "Does degeneracy change with the size of the model?",
}


def render_grid(
    cells: Mapping[str, Cell],
    across: Mapping[str, statistics.Table],
    folder: Path,
    *,
    note: str = "",
) -> str:
    """The page as HTML; its figures are also written to ``figures`` as SVG and PNG.

    Args:
        cells: by name.
        across: tables over several cells (model sizes), by the name of what they share.
        folder: of the grid, in which the cells' folders lie.
        note: said at the start, such as why there are no figures.
    """
    drawn = folder / FIGURES if figures.available() else None
    sections = [Section("At a glance", _glance(cells, note))]
    for name in dict.fromkeys(a for cell in cells.values() for a in cell.tables):
        for label, cell in cells.items():
            if name in cell.tables:
                sections.append(_section(cell.tables[name], label, len(cells) > 1, drawn))
    for label, table in across.items():
        sections.append(_section(table, label, len(across) > 1, drawn))
    sections.append(Section("Runs", [_runs(cells, folder)]))
    names = ", ".join(dict.fromkeys(cell.model for cell in cells.values()))
    return render_page(Report(TITLE, names, sections))


def _glance(cells: Mapping[str, Cell], note: str) -> list[Block]:
    tiles = []
    for label, cell in cells.items():
        known = [r for r in cell.results if r.status == "ok"]
        degenerate = wilson_share(sum(r.is_degenerate for r in known), len(known))
        share = share_interval(degenerate) if known else "none known"
        tiles.append(
            Tile(
                f"{label}: facts with a DKN",
                f"{sum(r.is_degenerate for r in known)} of {len(known)}",
                f"known of {len(cell.facts)}; {share}",
            )
        )
    refused = [
        f"{words(name).capitalize()} of {label} was not made: {reason}"
        for label, cell in cells.items()
        for name, reason in cell.refused.items()
    ]
    return [Tiles(tiles), *paragraphs([GROUPS, DISPUTED, *refused, note])]


def _section(table: statistics.Table, label: str, several: bool, drawn: Path | None) -> Section:
    name = words(table.analysis).capitalize()
    headlines = HEADLINES.get(table.analysis, ())
    found = [answer(table, headline) for headline in headlines[:1]]
    said = [ABOUT.get(table.analysis, ""), *found, *map(_sentence, [*counted(table), *table.notes])]
    blocks: list[Block] = [*paragraphs(said)]
    if drawn is not None:
        stem = drawn / f"{label}-{table.analysis}"
        bars = [_bars(table, headline, stem) for headline in headlines]
        blocks += [Figures(made)] if (made := [b for b in bars if b is not None]) else []
    if table.comparisons:
        blocks.append(comparison_table(table.comparisons, "Paired comparisons"))
    settings = [("seed", str(table.seed)), *((words(k), str(v)) for k, v in table.settings.items())]
    every = [*figure_tables(table.rows), Table(("setting", "value"), settings)]
    blocks.append(Fold("All figures and settings", every))
    return Section(f"{name}: {label}" if several else name, blocks)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bars(table: statistics.Table, headline: Headline, stem: Path) -> Figure | None:
    rows = headline.rows(table)
    if not rows:
        return None
    labels = headline.labels(rows)
    drawing = figures.bars(
        labels,
        [r.shown.mean for r in rows],
        [r.shown.ci_low for r in rows],
        [r.shown.ci_high for r in rows],
        axis=headline.axis,
        n=[r.n for r in rows],
        control=[r.control for r in rows],
        fills=[FILLS.get(r.group, figures.MAIN) for r in rows],
    )
    svg, _ = figures.save(drawing, stem.with_name(f"{stem.name}-{headline.figure}"))
    means = "; ".join(f"{text} {shown(r)}" for text, r in zip(labels, rows, strict=True))
    codes = spelled_out(rows)
    caption = f"{_sentence(headline.axis)}.{f' {codes}.' if codes else ''}"
    return Figure(svg.read_text(encoding="utf-8"), f"Bars with intervals: {means}", caption)


def _runs(cells: Mapping[str, Cell], folder: Path) -> Table:
    rows = []
    for label, cell in cells.items():
        run = (cell.folder / RUN).relative_to(folder).as_posix()
        link = Link(run, f"{run}/report.html")
        rows.append((label, cell.model, f"{cell.size.parameters:,}", len(cell.facts), link))
    numbers = (number("parameters"), number("facts"))
    return Table(("name", "model", *numbers, "run, with a card for every fact"), rows)
