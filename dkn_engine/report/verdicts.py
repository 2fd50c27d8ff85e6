"""A family's full drop against each of its controls, paired over facts, in numbers and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dkn_engine.report.content import Table, number
from dkn_engine.report.rows import CONTROL_WORDS
from dkn_engine.statistics.intervals import FEWEST
from dkn_engine.statistics.words import cell, where, words
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from dkn_engine.statistics.table import Comparison

FULL_DROPS = (
    "Full drop minus the control's on the same facts; two-sided sign-flip test, corrected (Holm) "
    f"for the number of rows; at least {FEWEST} facts are needed to say anything"
)


def verdicts(results: Sequence[FactResult], seed: int = 0) -> tuple[Comparison, ...]:
    """Full drop of the DKN (or of all candidates, for facts without one) minus each control's.

    Args:
        results: of any status; known facts with components count.
        seed: of the resampling.

    Returns:
        One comparison a family and control, p-values corrected for their number.
    """
    from dkn_engine.statistics.table import compare, corrected

    known = [r for r in results if r.status == "ok" and r.components]
    families = {
        "DKN families": [r for r in known if r.is_degenerate],
        "candidates without a DKN": [r for r in known if not r.is_degenerate],
    }
    comparisons = []
    for family, group in families.items():
        own = {r.fact_id: r.full_drop for r in group}
        for name, said in CONTROL_WORDS.items():
            control = {r.fact_id: r.controls[name].full_drop for r in group if name in r.controls}
            if control:
                comparisons.append(compare("full drop", (), (family, own), (said, control), seed))
    return corrected(comparisons)


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
