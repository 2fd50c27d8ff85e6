"""Intervals of statistics that are no means, from their values without one unit at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.statistics.intervals import (
    FEWEST,
    NOT_DEFINED,
    TOO_FEW,
    Estimate,
    mean_estimate,
    wilson_interval,
)
from dkn_engine.statistics.paired_tests import paired_p_value

Reals = NDArray[np.float64]
NOT_DEFINED_WITHOUT = "not defined without one of the units"
UNMOVED = "the same without any one of the units"
MOST_GROUPS = 1000  # more units are left out in so many groups, whose variance is as good
_DIGITS = 12  # behind the point; what is beyond is rounding


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A statistic of all units, and without each of them.

    Attributes:
        value: of all.
        without: ``[g]``, without each unit; of more than :data:`MOST_GROUPS` units, without each of
            so many groups.
        n: units.
    """

    value: float
    without: Reals
    n: int


def leave_one_out(
    statistic: Callable[[Reals], Reals], unit: NDArray[np.integer], *, at_once: int = 1 << 22
) -> LeftOut:
    """A statistic of all observations, and without those of each unit.

    Args:
        statistic: from weights of the observations ``[R, m]``, each 0 or 1, to values ``[R]``.
        unit: int ``[m]``, which of the units 0 to n - 1 each observation is of. Observations of
            one unit need not be independent.
        at_once: weights that are held at once, if that is enough for one row of them.
    """
    m = len(unit)
    n = int(unit.max()) + 1 if m else 0
    groups, rows = min(n, MOST_GROUPS), max(1, at_once // max(1, m))
    group = unit % max(1, groups)
    blocks = [
        statistic((group != np.arange(start, min(start + rows, groups))[:, None]).astype(float))
        for start in range(0, groups, rows)
    ]
    value = float(statistic(np.ones((1, m)))[0])
    return LeftOut(value, np.concatenate([np.empty(0), *blocks]), n)


def bounded_estimate(
    values: LeftOut, *, lowest: float = 0.0, highest: float = 1.0, size: int | None = None
) -> Estimate:
    """A statistic between two bounds, such as an AUROC, with its 95 % interval.

    It is Wilson's interval of a share, of as many trials as would give the share the jackknife's
    variance. At a bound that variance is 0, and the number of units takes its place. A statistic
    near a bound claims no more than one at it: its interval reaches at least as far inwards.

    Args:
        values: of :func:`leave_one_out`.
        lowest, highest: the bounds.
        size: units that the statistic rests on, if not all of them (a precision rests on those
            that were called).

    Returns:
        An estimate of ``n`` units; its median is its mean. There is no interval of fewer than six
        units, where the statistic is not defined without one of them, or where it is the same
        without any of them and not at a bound.

    Source:
        Wilson (1927); Korn and Graubard (1998) on effective numbers of trials; Newcombe (2006) on
        the AUROC of well separated classes.
    """
    value, without, n = values.value, values.without, values.n
    width = highest - lowest
    share = round((value - lowest) / width, _DIGITS)
    at_bound = share in {0.0, 1.0}
    reason = ""
    if not math.isfinite(value):
        reason = NOT_DEFINED
    elif n < FEWEST:
        reason = TOO_FEW
    elif not np.isfinite(without).all():
        reason = NOT_DEFINED_WITHOUT
    elif not at_bound and not np.round(np.ptp(without), _DIGITS):
        reason = UNMOVED
    if reason:
        return Estimate.alone(value, n, reason, value)
    size = n if size is None else size
    trials: float = size
    if not at_bound:
        variance = (len(without) - 1) * float(without.var()) / width**2
        trials = share * (1 - share) / variance
    low, high = wilson_interval(share, trials)
    low, high = min(low, wilson_interval(1, size)[0]), max(high, wilson_interval(0, size)[1])
    return Estimate(value, lowest + width * low, lowest + width * high, n, value)


def difference_estimate(
    first: LeftOut, second: LeftOut, *, seed: int = 0
) -> tuple[Estimate, float]:
    """One statistic minus another of the same units, with its 95 % interval and p-value.

    Both take the jackknife's pseudo-values, n times the difference minus n - 1 times that without a
    unit, as if they were paired differences of the units.

    Args:
        first, second: of :func:`leave_one_out` with the same units.
        seed: of the flips of :func:`~dkn_engine.statistics.paired_tests.paired_p_value`.
    """
    p_value = paired_p_value(_pseudo_values(first, second), seed=seed)
    return difference_interval(first, second), p_value


def difference_interval(first: LeftOut, second: LeftOut) -> Estimate:
    """:func:`difference_estimate` without the p-value, which takes most of its time."""
    value, n = first.value - second.value, first.n
    if n < FEWEST:
        return Estimate.alone(value, n, TOO_FEW, value)
    centred = mean_estimate(_pseudo_values(first, second))
    if centred.reason:
        return Estimate.alone(value, n, centred.reason, value)
    bias = centred.mean - value
    return Estimate(value, centred.ci_low - bias, centred.ci_high - bias, n, value)


def _pseudo_values(first: LeftOut, second: LeftOut) -> Reals:
    value = first.value - second.value
    change = value - (first.without - second.without)
    # Rounding left as it is would look like differences that all have one sign.
    found: Reals = np.round(value + (len(change) - 1) * change, _DIGITS)
    return found
