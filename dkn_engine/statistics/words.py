"""Estimates, rows and comparisons in the few characters of a cell, and findings as sentences."""

from __future__ import annotations

import math

from dkn_engine.statistics.intervals import FEWEST, Estimate
from dkn_engine.statistics.paired_tests import ALPHA
from dkn_engine.statistics.table import Comparison, Conditions, Row, Table

DASH = "–"
_WIDEST = 20  # characters of a mean with its interval


def number(value: float) -> str:
    """Two digits after the point where they fit in five characters; a dash if not finite."""
    if not math.isfinite(value):
        return DASH
    if abs(value) >= 1000:
        return f"{value:.0e}"
    return _rounded(value, 2 if -1 < value < 10 else 1 if abs(value) < 10 else 0)


def interval(estimate: Estimate, digits: int = 2) -> str:
    """ "0.23 [0.12, 0.31]" in at most 20 characters; no interval where it is not known."""
    if estimate.n == 0:
        return DASH
    figures = [v for v in (estimate.mean, estimate.ci_low, estimate.ci_high) if math.isfinite(v)]
    for places in range(digits, -1, -1):
        mean, *ends = (_rounded(v, places) for v in figures)
        text = f"{mean} [{', '.join(ends)}]" if ends else mean
        if len(text) <= _WIDEST:
            return text
    return f"{estimate.mean:.2g}"


def no_interval(estimate: Estimate) -> str:
    """Why an estimate has no interval; empty if it has one."""
    if math.isfinite(estimate.ci_low):
        return ""
    if estimate.n < FEWEST:
        return "too few facts for an interval"
    return f"no interval, since {estimate.reason}" if estimate.reason else "no interval"


def cell(row: Row | Comparison) -> str:
    """Mean (or median) and interval; a dash where nothing is defined."""
    size = abs(row.shown.mean)
    if not math.isfinite(size):
        return DASH
    return interval(row.shown, 2 if size < 10 else 1 if size < 100 else 0)


def share_interval(share: Estimate) -> str:
    """The interval of a share in words; of few facts none, which would read as precision."""
    if share.n < FEWEST:
        return "too few facts for an interval"
    return f"95% interval {share.ci_low:.0%} to {share.ci_high:.0%}"


def words(name: str) -> str:
    """A name of figures, groups or conditions for people."""
    return name.replace("_", " ")


def where(conditions: Conditions) -> str:
    """The values of some conditions, in order."""
    return ", ".join(words(value) for _, value in conditions)


def findings(table: Table) -> list[str]:
    """One sentence for each difference found, then how many were not, and how many were unclear."""
    return [*(sentence(c) for c in table.comparisons if c.different), *counted(table)]


def counted(table: Table) -> list[str]:
    """In how many comparisons a difference was found, and how many had too few pairs to say."""
    tested = [c for c in table.comparisons if math.isfinite(c.p_value)]
    few = len(table.comparisons) - len(tested)
    texts = []
    if tested:
        same = sum(not c.different for c in tested)
        outcome = f"no difference found in {same} of {len(tested)}" if same else "all differ"
        texts.append(
            f"{len(tested)} paired comparisons, p-values corrected for their number (Holm, "
            f"{ALPHA:g}): {outcome}."
        )
    if few:
        texts.append(
            f"{few} comparison{'s have' if few > 1 else ' has'} too few pairs to say anything "
            f"(fewer than {FEWEST})."
        )
    return texts


def sentence(c: Comparison) -> str:
    """A comparison in words."""
    under = where(c.conditions)
    # "+0.30 [0.20, 0.40]": what is left out of the interval is how sure the sign is.
    sign = "+" if c.mean > 0 else ""
    p = f", p {c.p_corrected:.2g}" if math.isfinite(c.p_corrected) else ""
    return (
        f"{words(c.figure)}{f' ({under})' if under else ''}: {words(c.group)} minus "
        f"{words(c.against)} is {sign}{cell(c)}{p}, n {c.n}: {c.verdict}."
    )


def _rounded(value: float, places: int) -> str:
    """Adding 0.0 turns a rounded "-0.00" into "0.00"."""
    return f"{round(value, places) + 0.0:.{places}f}"
