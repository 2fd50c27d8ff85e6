"""Paired comparisons as a table, of a run and of the analyses."""

from __future__ import annotations

from collections.abc import Sequence

from dkn_engine.report.content import Table, number
from dkn_engine.statistics.table import Comparison
from dkn_engine.statistics.words import cell, where, words


def comparison_table(comparisons: Sequence[Comparison], caption: str) -> Table:
    """Paired comparisons, each ending in a verdict."""
    rows = [
        (
            f"{words(c.figure)} ({where(c.conditions)})" if c.conditions else words(c.figure),
            f"{words(c.group)} minus {words(c.against)}",
            cell(c),
            c.n,
            c.p_value,
            c.p_corrected,
            c.verdict,
        )
        for c in comparisons
    ]
    numbers = (number("n"), number("p"), number("p corrected"))
    head = ("figure", "groups", "difference [95% interval]", *numbers, "verdict")
    return Table(head, rows, caption)
