"""Means and shares with 95 % intervals that cover at small numbers, and why there is none.

What they cover was found by simulation (``tests/statistics/test_coverage.py``; a table of it is in
``docs/explanation/statistics.md``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# From fewer values there is no interval of a mean and no test of a difference: even the range of
# five values misses the median of what they were drawn from in 2 * 0.5 ** 5 = 6 % of cases, and
# five differences of one sign are no less likely than that.
FEWEST = 6
UPPER = 0.975  # of a distribution whose 95 % interval leaves out as much at either end
_Z = 1.959963984540054  # of the normal distribution
_SAME = 1e-12  # relative; what differs by less differs by rounding

NOT_DEFINED = "not defined"
TOO_FEW = f"fewer than {FEWEST} values"
ALL_EQUAL = "all values are equal"
COUNTED = "counted, not sampled"
MEDIAN = "a median is given without one"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or another statistic, with its 95 % interval or the reason why there is none.

    Attributes:
        mean: over the finite values; NaN if there are none.
        ci_low, ci_high: ends of the interval; both NaN where there is none.
        n: number of finite values.
        median: of the same values; robust where a few ratios explode.
        reason: why there is no interval, in a few words; empty where there is one.
    """

    mean: float
    ci_low: float
    ci_high: float
    n: int
    median: float = math.nan
    reason: str = ""

    @classmethod
    def alone(cls, mean: float, n: int, reason: str, median: float = math.nan) -> Estimate:
        """An estimate without an interval, and why it has none."""
        return cls(mean, math.nan, math.nan, n, median, reason)

    @property
    def bounds(self) -> tuple[float, float]:
        """What tells it from other estimates: its interval, or the value that all values have.

        Both NaN, which compare as False, where there is neither.
        """
        if self.reason == ALL_EQUAL:
            return self.mean, self.mean
        return self.ci_low, self.ci_high


def wilson_share(hits: int, n: int) -> Estimate:
    """A share with Wilson's score interval, which stays in [0, 1] and is given for any n >= 1.

    Raises:
        ValueError: ``hits`` is not between 0 and ``n``.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits must be between 0 and n; got {hits} of {n}")
    if n == 0:
        return Estimate.alone(math.nan, 0, NOT_DEFINED)
    return Estimate(hits / n, *wilson_interval(hits / n, n), n)


def wilson_interval(share: float, size: float) -> tuple[float, float]:
    """Wilson's score interval of a share of ``size`` independent trials, whole or effective."""
    scale = 1 + _Z**2 / size
    centre = (share + _Z**2 / (2 * size)) / scale
    half = _Z * math.sqrt(share * (1 - share) / size + _Z**2 / (4 * size * size)) / scale
    # At the ends the formula is exact in reals only.
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


def mean_estimate(values: Iterable[float]) -> Estimate:
    """The mean of the finite values, with its interval by :func:`mean_interval`.

    There is no interval of fewer than :data:`FEWEST` values or of equal ones, which say nothing of
    how far other values would lie.

    Args:
        values: any number; NaN and infinities are left out.
    """
    x = np.fromiter(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if n == 0:
        return Estimate.alone(math.nan, 0, NOT_DEFINED)
    mean, median = float(x.mean()), float(np.median(x))
    if n < FEWEST:
        return Estimate.alone(mean, n, TOO_FEW, median)
    if all_equal(x):
        return Estimate.alone(mean, n, ALL_EQUAL, median)
    return Estimate(mean, *mean_interval(x), n, median)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a mean: Student's t, made wider where the values are skewed.

    Either end is the farther one of Student's interval and of Hall's, which undoes the skewness of
    the t statistic. Student's alone covers 0.84 to 0.90 at n = 8 to 10 for skewed values; Hall's
    alone too little for heavy tails and for values most of which are equal.

    Args:
        values: float64 ``[n]``, two or more, not all equal.

    Source:
        Hall, On the removal of skewness by transformation (J. R. Stat. Soc. B 54, 1992): with
        s = skewness / sqrt(n), T + s T^2 / 3 + s^2 T^3 / 27 + s / 6 has no skewness to order 1/n.
    """
    from scipy.special import stdtrit

    n = len(values)
    deviation = values - values.mean()
    deviation /= np.abs(deviation).max()  # so that cubes neither overflow nor vanish
    skewness = (deviation**3).mean() / (deviation**2).mean() ** 1.5
    error = values.std(ddof=1) / math.sqrt(n)
    t = float(stdtrit(n - 1, UPPER))
    high, low = (_unskewed(end, float(skewness) / math.sqrt(n)) for end in (t, -t))
    mean = values.mean()
    return float(mean - error * max(t, high)), float(mean - error * min(-t, low))


def all_equal(values: NDArray[np.float64]) -> bool:
    """Whether values differ by no more than rounding."""
    return bool(np.ptp(values) <= _SAME * np.abs(values).max())


def _unskewed(end: float, s: float) -> float:
    """The t statistic that Hall's transformation takes to ``end``."""
    if abs(s) < _SAME:
        return end
    return 3 * (float(np.cbrt(1 + s * (end - s / 6))) - 1) / s
