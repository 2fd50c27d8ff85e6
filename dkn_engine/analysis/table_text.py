"""An analysis's table for a terminal of 80 columns, and what it says in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from dkn_engine.report.table import COLUMNS
from dkn_engine.report.text import fit
from dkn_engine.statistics.table import MEDIANS, Conditions, Row, Table
from dkn_engine.statistics.words import DASH, cell, findings, where, words

__all__ = ["render", "words"]

_CELL = 18  # of a mean with its interval
_LABEL = 24
_ACROSS = (COLUMNS - _LABEL) // _CELL  # groups beside one another


def render(table: Table, *, limit: int | None = 60) -> str:
    """The figures, group beside group, then findings and notes; ends in a newline.

    Args:
        table: of an analysis.
        limit: most lines of figures; None for all.
    """
    lines = list(_figures(table))
    if limit is not None and len(lines) > limit:
        lines = [*lines[:limit], f"… and {len(lines) - limit} more lines of figures"]
    words = [textwrap.fill(s, COLUMNS - 1) for s in [*findings(table), *table.notes]]
    return "\n".join([*lines, "", *words]) + "\n"


def _figures(table: Table) -> Iterator[str]:
    """For each figure its conditions as rows and its groups as columns."""
    yield f"Means [95% intervals]; seed {table.seed}"
    for figure in dict.fromkeys(r.figure for r in table.rows):
        rows = [r for r in table.rows if r.figure == figure]
        yield ""
        fixed, varied = _names(rows)
        by = f", by {', '.join(map(words, varied))}" if varied else ""
        under = f" ({where(fixed)})" if fixed else ""
        median = " (median)" if figure in MEDIANS else ""
        yield from textwrap.wrap(f"{words(figure)}{median}{under}{by}", COLUMNS - 1)
        every = list(dict.fromkeys(r.group for r in rows))
        for start in range(0, len(every), _ACROSS):
            groups = every[start : start + _ACROSS]
            yield f"{'':<{_LABEL}}{''.join(f'{fit(words(g), _CELL)}' for g in groups)}".rstrip()
            yield "─" * COLUMNS
            yield from _lines(rows, groups, varied)


def _names(rows: Sequence[Row]) -> tuple[Conditions, list[str]]:
    """Conditions that all rows have, and the names of those in which they differ."""
    names = dict.fromkeys(name for r in rows for name, _ in r.conditions)
    values = {name: {dict(r.conditions).get(name) for r in rows} for name in names}
    varied = [name for name in names if len(values[name]) > 1]
    fixed = tuple((n, v) for n, v in rows[0].conditions if n not in varied)
    return fixed, varied


def _lines(rows: Sequence[Row], groups: Sequence[str], varied: Sequence[str]) -> Iterator[str]:
    for conditions in dict.fromkeys(r.conditions for r in rows):
        cells = {r.group: cell(r) for r in rows if r.conditions == conditions}
        text = "".join(fit(cells.get(g, DASH), _CELL) for g in groups).rstrip()
        label = where(tuple(c for c in conditions if c[0] in varied)) or "all"
        if len(label) >= _LABEL:
            yield label
            label = ""
        yield f"{label:<{_LABEL}}{text}"
