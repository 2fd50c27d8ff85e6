"""A family's full drop against each of its controls, paired over facts, in numbers and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dkn_engine.report.content import Table, number
from dkn_engine.report.rows import CONTROL_WORDS
from dkn_engine.statistics.intervals import FEWEST, Estimate
from dkn_engine.statistics.words import interval
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from dkn_engine.statistics.table import Comparison

_WORDS = {"higher": "larger than the control's", "lower": "smaller than the control's"}
# In a list, the comma would make two of it.
_SAID = {CONTROL_WORDS["mean_ablation"]: "mean activations instead of zeros"}
_SENTENCES = {
    "no difference found": "No difference found in the full drop",
    "higher": "The full drop is larger than the control's",
    "lower": "The full drop is smaller than the control's",
    "too few to say": (
        f"Too few facts ({FEWEST} are needed) to tell the full drop from the control's"
    ),
}


def verdicts(results: Sequence[FactResult], seed: int = 0) -> tuple[Comparison, ...]:
    """Full drop of the DKN (or of all candidates, for facts without one) minus each control's.

    Args:
        results: of any status; known facts with components count.
        seed: of the resampling.

    Returns:
        One comparison a family and control, p-values corrected for their number.
    """
    known = [r for r in results if r.status == "ok" and r.components]
    if not any(r.controls for r in known):
        return ()
    # Imported here, since the analyses import torch.
    from dkn_engine.statistics.table import compare, corrected

    families = {
        "DKN families": [r for r in known if r.is_degenerate],
        "Candidates without a DKN": [r for r in known if not r.is_degenerate],
    }
    return corrected(
        [
            compare(
                "full drop",
                (),
                (family, {r.fact_id: r.full_drop for r in group}),
                (
                    words,
                    {r.fact_id: r.controls[name].full_drop for r in group if name in r.controls},
                ),
                seed,
            )
            for family, group in families.items()
            for name, words in CONTROL_WORDS.items()
            if any(name in r.controls for r in group)
        ]
    )


def verdict_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """The same in words: what is larger or smaller, and where no difference was found."""
    by_verdict: dict[str, dict[str, list[str]]] = {}
    for c in comparisons:
        said = _SAID.get(c.against, c.against)
        by_verdict.setdefault(c.verdict, {}).setdefault(c.group, []).append(said)
    found = []
    for verdict, beginning in _SENTENCES.items():
        pairs = [
            f"{family} against {', '.join(controls)}"
            for family, controls in by_verdict.get(verdict, {}).items()
        ]
        if pairs:
            found.append(f"{beginning}: {'; '.join(pairs)}.")
    return found


def verdict_table(comparisons: Sequence[Comparison]) -> Table:
    """The comparisons as a table that ends in a verdict each."""
    return Table(
        (
            "family",
            "control",
            "difference [95% interval]",
            number("facts"),
            number("p, corrected"),
            "verdict",
        ),
        [
            (
                c.group,
                c.against,
                interval(Estimate(c.mean, c.ci_low, c.ci_high, c.n)),
                c.n,
                c.p_corrected,
                _WORDS.get(c.verdict, c.verdict),
            )
            for c in comparisons
        ],
        "Full drop minus the control's on the same facts; two-sided sign-flip test, corrected "
        f"(Holm) for the number of rows; at least {FEWEST} facts are needed to say anything",
    )
