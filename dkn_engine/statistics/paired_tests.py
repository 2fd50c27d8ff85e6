"""Tests of paired differences, and the correction for how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.seeds import generator
from dkn_engine.statistics.intervals import FEWEST

ALPHA = 0.05
_RESAMPLES = 9999
_AT_ONCE = 1 << 20  # values flipped at once; all of them are gigabytes for thousands of pairs


def paired_p_value(differences: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences under random flips of their signs.

    Exact for up to 13 pairs, from 9,999 seeded flips above.

    Args:
        differences: real ``[n]``; values that are not finite are left out.
        seed: of the flips.

    Returns:
        NaN with fewer than six pairs, 1.0 if all differences are 0. No more than 5 % are below 0.05
        where a difference and its negative are as likely, as they are if nothing tells the two of
        a pair apart; of skewed differences with a mean of 0 more are: see
        docs/explanation/statistics.md.

    Source:
        Fisher's randomisation test; Phipson and Smyth (2010) on never reporting zero.
    """
    from scipy.stats import permutation_test

    x = np.asarray(differences, dtype=np.float64)
    x = x[np.isfinite(x)]
    if len(x) < FEWEST:
        return math.nan
    if not x.any():
        return 1.0
    # With one sample, permutations of the "samples" kind flip signs against its negative.
    found = permutation_test(
        (x, -x),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _AT_ONCE // len(x)),
        rng=generator(seed, "signs"),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's step-down correction; NaN stays NaN and does not count.

    Source:
        Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    found = np.full(len(p), math.nan)
    at = np.flatnonzero(np.isfinite(p))
    order = at[np.argsort(p[at], kind="stable")]
    steps = np.arange(len(order), 0, -1) * p[order]
    found[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return found
