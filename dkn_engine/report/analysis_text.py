"""An analysis's table for people: figures with groups side by side, and what it says in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dkn_engine.report.content import Block, Column, Points, Section, Table, number, paragraphs
from dkn_engine.report.text import to_text
from dkn_engine.statistics import table as statistics
from dkn_engine.statistics.words import DASH, cell, counted, where, words

__all__ = ["figure_tables", "render", "words"]


def render(table: statistics.Table, *, limit: int | None = 60, width: int | None = None) -> str:
    """The figures, then differences that were found and notes, for a terminal; ends in a newline.

    Args:
        table: of an analysis.
        limit: most rows of figures; None for all.
        width: most columns; None: the terminal's, or 80 where there is none.
    """
    return to_text([Section("", blocks_of(table, limit))], width=width)


def blocks_of(table: statistics.Table, limit: int | None = None) -> list[Block]:
    """What :func:`render` and a notebook show, of ``limit`` rows of figures at most."""
    blocks: list[Block] = []
    tables, left_out = figure_tables(table.rows), 0
    left = sum(len(t.rows) for t in tables) if limit is None else limit
    for figures in tables:
        shown = dataclasses.replace(figures, rows=figures.rows[:left])
        left_out += len(figures.rows) - len(shown.rows)
        left -= len(shown.rows)
        blocks += [shown] if shown.rows else []
    if left_out:
        blocks += paragraphs([f"… and {left_out} more rows of figures"], note=True)
    blocks += _differences(table.comparisons)
    said = [*counted(table), *table.notes, f"Means [95% intervals]; seed {table.seed}."]
    return [*blocks, Points(said)]


def _differences(comparisons: Sequence[statistics.Comparison]) -> list[Table]:
    """A row for each difference that was found; the page has those that were not, too."""
    found = [c for c in comparisons if c.different]
    if not found:
        return []
    names = {words(c.figure) for c in found}
    single = names.pop() if len(names) == 1 else ""
    rows = []
    for c in found:
        under = where(c.conditions)
        figure = under if single else f"{words(c.figure)}{f' ({under})' if under else ''}"
        groups = f"{words(c.group)} − {words(c.against)}"
        # "+0.30 [0.20, 0.40]": what is left out of the interval is how sure the sign is.
        difference = f"{'+' if c.mean > 0 else ''}{cell(c)}"
        row = (f"{figure}: {groups}" if figure else groups, difference, c.n, f"{c.p_corrected:.2g}")
        rows.append(row)
    # One column where two would be too wide for most terminals.
    columns = (Column(single or "figure", least=42), "difference", number("n"), number("p"))
    return [Table(columns, rows, "Differences found, p corrected")]


def figure_tables(rows: Sequence[statistics.Row]) -> list[Table]:
    """For each figure its conditions as rows and its groups as columns."""
    by_figure: dict[str, list[statistics.Row]] = {}
    for row in rows:
        by_figure.setdefault(row.figure, []).append(row)
    return [_figure_table(figure, of_one) for figure, of_one in by_figure.items()]


def _figure_table(figure: str, rows: Sequence[statistics.Row]) -> Table:
    names = dict.fromkeys(name for r in rows for name, _ in r.conditions)
    values = {name: {dict(r.conditions).get(name) for r in rows} for name in names}
    varied = [name for name in names if len(values[name]) > 1]
    fixed = tuple((n, v) for n, v in rows[0].conditions if n not in varied)
    by = ", ".join(map(words, varied))
    median = " (median)" if figure in statistics.MEDIANS else ""
    under = f" ({where(fixed)})" if fixed else ""
    groups = list(dict.fromkeys(r.group for r in rows))
    body: list[Sequence[object]] = []
    for conditions in dict.fromkeys(r.conditions for r in rows):
        here = {r.group: r for r in rows if r.conditions == conditions}
        label = where(tuple(c for c in conditions if c[0] in varied)) or "all"
        sizes = [here[g].n for g in groups if g in here]
        n = ", ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
        body.append((label, *(cell(here[g]) if g in here else DASH for g in groups), n))
    caption = f"{words(figure)}{median}{under}{f', by {by}' if by else ''}"
    return Table((by, *map(words, groups), number("n")), body, caption)
