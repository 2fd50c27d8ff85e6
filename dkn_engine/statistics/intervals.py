"""Means and shares with 95 % intervals; safe for NaN and for empty input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# From fewer values there is no interval of a mean and no test of a difference: even the range of
# five values misses the median of what they were drawn from in 2 * 0.5 ** 5 = 6 % of cases, and
# five differences of one sign are no less likely than that.
FEWEST = 6
_Z = 1.959963984540054  # two-sided 95 % of the normal distribution
_BLOCK = 1 << 21  # most resampled values held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; NaN where there is too little to say it.

    Attributes:
        mean: over the finite values.
        ci_low, ci_high: ends of the interval; NaN for a mean of fewer than :data:`FEWEST` values,
            whose resamples do not leave their range.
        n: number of finite values.
        median: of the same values; robust where a few ratios explode.
    """

    mean: float
    ci_low: float
    ci_high: float
    n: int
    median: float = math.nan


def wilson_share(hits: int, n: int) -> Estimate:
    """A share with Wilson's score interval, which stays in [0, 1] and is honest for any n.

    Raises:
        ValueError: ``hits`` is not between 0 and ``n``.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits must be between 0 and n; got {hits} of {n}")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = hits / n
    scale = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n)) / scale
    # At the ends the formula is exact in reals only.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == n else centre + half
    return Estimate(share, low, high, n)


def bootstrap_mean(values: Iterable[float], *, seed: int = 0, n_resamples: int = 2000) -> Estimate:
    """The mean of the finite values with a percentile bootstrap interval, if they are enough.

    Args:
        values: any length; NaN and infinities are left out.
        seed: of the resampling; the same seed and values give the same interval.
        n_resamples: number of resamples.
    """
    x = np.fromiter(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    n = len(x)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean, median = float(x.mean()), float(np.median(x))
    if n < FEWEST:
        return Estimate(mean, math.nan, math.nan, n, median)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    means = np.concatenate(
        [
            x[rng.integers(n, size=(min(block, n_resamples - start), n))].mean(axis=1)
            for start in range(0, n_resamples, block)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(mean, float(low), float(high), n, median)


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Estimate:
    """Any statistic of ``n`` units with a percentile bootstrap interval, if they are enough.

    Args:
        statistic: from indices of units int64 ``[n]`` (with repetitions) to a value; resamples for
            which it is NaN (such as one class only) are left out of the interval.
        n: number of units; the statistic of an empty sample is not asked for.
        seed: of the resampling.
        n_resamples: number of resamples.

    Returns:
        ``mean`` is the statistic of all units, ``median`` that of the resamples.
    """
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(statistic(np.arange(n)))
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.integers(n, size=n)) for _ in range(n_resamples)])
    found = found[np.isfinite(found)]
    if n < FEWEST or not len(found):
        return Estimate(value, math.nan, math.nan, n)
    low, median, high = np.percentile(found, [2.5, 50, 97.5])
    return Estimate(value, float(low), float(high), n, float(median))
