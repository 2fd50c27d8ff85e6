"""Paired comparisons as a table, of a run and of the analyses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dkn_engine.report.content import Column, Table, number
from dkn_engine.statistics.table import Comparison
from dkn_engine.statistics.words import DASH, cell, where, words


def comparison_table(comparisons: Sequence[Comparison], caption: str) -> Table:
    """Paired comparisons, each ending in a verdict; the figure is named where there are several."""
    figures = [
        f"{words(c.figure)} ({where(c.conditions)})" if c.conditions else words(c.figure)
        for c in comparisons
    ]
    rows = [
        (
            figure,
            f"{words(c.group)} minus {words(c.against)}",
            cell(c),
            c.n,
            *(f"{p:.2g}" if math.isfinite(p) else DASH for p in (c.p_value, c.p_corrected)),
            c.verdict,
        )
        for figure, c in zip(figures, comparisons, strict=True)
    ]
    numbers = (number("n"), number("p"), number("p corrected", "p corr."))
    difference = Column("difference [95% interval]", short="difference")
    head = ("figure", "groups", difference, *numbers, Column("verdict", least=12))
    start = 0 if len(set(figures)) > 1 else 1
    return Table(head[start:], [row[start:] for row in rows], caption)
