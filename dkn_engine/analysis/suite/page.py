"""The page of a grid of analyses: what was found, the figures, and every number below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dkn_engine.analysis.suite.cells import Cell
from dkn_engine.analysis.suite.headlines import HEADLINES, Headline
from dkn_engine.analysis.suite.requests import RUN
from dkn_engine.report import figures
from dkn_engine.report.content import HtmlTable, Picture, Section, Tile
from dkn_engine.report.html.markup import Markup, escape
from dkn_engine.report.html.page import render_page
from dkn_engine.report.html.tables import render_table
from dkn_engine.report.reading import DISPUTED
from dkn_engine.statistics.intervals import wilson_share
from dkn_engine.statistics.table import MEDIANS, Comparison, Row, Table
from dkn_engine.statistics.words import cell as shown
from dkn_engine.statistics.words import counted, words

PAGE, FIGURES = "report.html", "figures"
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
    cells: Mapping[str, Cell], across: Mapping[str, Table], folder: Path, *, note: str = ""
) -> str:
    """The page as HTML; its figures are also written to ``figures`` as SVG and PNG.

    Args:
        cells: by name.
        across: tables over several cells (model sizes), by the name of what they share.
        folder: of the grid, in which the cells' folders lie.
        note: said at the start, such as why there are no figures.
    """
    drawn = folder / FIGURES if figures.available() else None
    sections = [_glance(cells, note)]
    for name in dict.fromkeys(a for cell in cells.values() for a in cell.tables):
        for label, cell in cells.items():
            if name in cell.tables:
                sections.append(_section(cell.tables[name], label, len(cells) > 1, drawn))
    for label, table in across.items():
        sections.append(_section(table, label, len(across) > 1, drawn))
    sections.append(_made(cells, folder))
    names = ", ".join(dict.fromkeys(cell.model for cell in cells.values()))
    return render_page(TITLE, names, sections)


def _glance(cells: Mapping[str, Cell], note: str) -> Section:
    tiles = []
    for label, cell in cells.items():
        known = [r for r in cell.results if r.status == "ok"]
        degenerate = wilson_share(sum(r.is_degenerate for r in known), len(known))
        found = f"{degenerate.ci_low:.0%} to {degenerate.ci_high:.0%}" if known else "none known"
        tiles.append(
            Tile(
                f"{label}: facts with a DKN",
                f"{sum(r.is_degenerate for r in known)} of {len(known)}",
                f"known of {len(cell.facts)}; 95% interval of the share {found}",
            )
        )
    refused = [
        f"{words(name).capitalize()} of {label} was not made: {reason}"
        for label, cell in cells.items()
        for name, reason in cell.refused.items()
    ]
    return Section("At a glance", [GROUPS, DISPUTED, *refused, *([note] if note else [])], tiles)


def _section(table: Table, label: str, several: bool, drawn: Path | None) -> Section:
    name = words(table.analysis).capitalize()
    pictures = []
    if drawn is not None:
        for headline in HEADLINES.get(table.analysis, ()):
            picture = _picture(table, headline, drawn / f"{label}-{table.analysis}")
            pictures += [] if picture is None else [picture]
    return Section(
        f"{name}: {label}" if several else name,
        [ABOUT.get(table.analysis, ""), *map(_sentence, [*counted(table), *table.notes])],
        pictures=pictures,
        tables=[_comparisons(table.comparisons)] if table.comparisons else [],
        body=_details(_figures(table.rows), table.settings, table.seed),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _picture(table: Table, headline: Headline, stem: Path) -> Picture | None:
    rows = headline.rows(table)
    if not rows:
        return None
    labels = headline.labels(rows)
    figure = figures.bars(
        labels,
        [r.shown.mean for r in rows],
        [r.shown.ci_low for r in rows],
        [r.shown.ci_high for r in rows],
        axis=headline.axis,
        n=[r.n for r in rows],
        control=[r.control for r in rows],
    )
    figures.save(figure, stem.with_name(f"{stem.name}-{headline.figure}"))
    means = "; ".join(f"{text} {shown(r)}" for text, r in zip(labels, rows, strict=True))
    under = "; ".join(f"{k}: {v.replace('|', ', ')}" for k, v in headline.keep.items() if v)
    caption = f"{_sentence(headline.axis)}{f' ({words(under)})' if under else ''}."
    return Picture(figures.to_svg(figure), f"Bars with intervals: {means}", caption)


def _comparisons(comparisons: Sequence[Comparison]) -> HtmlTable:
    rows = [
        (
            words(c.figure),
            ", ".join(words(v) for _, v in c.conditions),
            f"{words(c.group)} minus {words(c.against)}",
            shown(c),
            c.n,
            c.p_value,
            c.p_corrected,
            c.verdict,
        )
        for c in comparisons
    ]
    head = ("figure", "conditions", "groups", "difference", "n", "p", "p corrected", "verdict")
    return HtmlTable(head, rows, "Paired comparisons")


def _figures(rows: Sequence[Row]) -> list[HtmlTable]:
    """A table for each figure, a column for each of its conditions."""
    found = []
    for figure in dict.fromkeys(r.figure for r in rows):
        mine = [r for r in rows if r.figure == figure]
        names = list(dict.fromkeys(name for r in mine for name, _ in r.conditions))
        body = [
            (
                words(r.group),
                *(words(dict(r.conditions).get(name, "")) for name in names),
                shown(r),
                r.n,
            )
            for r in mine
        ]
        controls = [i for i, r in enumerate(mine) if r.control]
        what = "median" if figure in MEDIANS else "mean [95% interval]"
        head = ("group", *map(words, names), what, "n")
        found.append(HtmlTable(head, body, _sentence(words(figure)), controls))
    return found


def _details(tables: Sequence[HtmlTable], settings: Mapping[str, Any], seed: int) -> Markup:
    rows = [("seed", str(seed)), *((words(k), str(v)) for k, v in settings.items())]
    parts = [render_table(t) for t in [*tables, HtmlTable(("setting", "value"), rows)]]
    return Markup(
        "\n".join(
            ["<details>", "<summary>All figures and settings</summary>", *parts, "</details>"]
        )
    )


def _made(cells: Mapping[str, Cell], folder: Path) -> Section:
    rows = []
    for label, cell in cells.items():
        run = (cell.folder / RUN).relative_to(folder).as_posix()
        link = Markup(f'<a href="{escape(run)}/report.html">{escape(run)}</a>')
        rows.append((label, cell.model, f"{cell.size.parameters:,}", len(cell.facts), link))
    head = ("name", "model", "parameters", "facts", "run, with a card for every fact")
    return Section("Runs", tables=[HtmlTable(head, rows)])
