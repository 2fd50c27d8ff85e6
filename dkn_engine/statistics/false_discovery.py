"""How many findings chance explains: false discovery rates, and what a null finds itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.statistics.intervals import Estimate, mean_estimate
from dkn_engine.statistics.paired_tests import ALPHA


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """The least false discovery rate at which each is a finding, ``[n]``; NaN does not count.

    Args:
        p_values: real ``[n]``, in [0, 1] or NaN.

    Source:
        Benjamini and Hochberg, Controlling the false discovery rate (J. R. Stat. Soc. B 57, 1995).
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, math.nan)
    there = np.isfinite(p)
    if there.any():
        adjusted[there] = false_discovery_control(p[there])
    return adjusted


def fewest_at_the_floor(n: int, draws: int, alpha: float = ALPHA) -> int:
    """How many of ``n`` p-values must be the least possible one before any is a finding.

    With so many draws none is below 1 / (1 + draws), and k findings of n need one of at most
    ``alpha`` k / n. More than ``n`` where no finding is possible at all: with fewer than
    1 / ``alpha`` - 1 draws, 19 at 0.05.
    """
    return math.ceil(n / (alpha * (1 + draws)) - 1e-9)


@dataclass(frozen=True, slots=True)
class BeyondChance:
    """What was found, and what the draws of a null find on the same units.

    Attributes:
        n: units (facts) with draws.
        draws: of the unit that has most.
        found: units with a finding.
        expected: findings by chance: the sum over units of the share of draws that have one.
        beyond: share of units with a finding minus that of the draws, the mean over units.
        significant: findings at a false discovery rate of ``alpha``. Units without one count in
            the correction as p = 1.
        needed: findings that must have the least possible p-value before any counts; see
            :func:`fewest_at_the_floor`.
        alpha: the rate.
    """

    n: int
    draws: int
    found: int
    expected: float
    beyond: Estimate
    significant: int
    needed: int
    alpha: float = ALPHA

    @property
    def can_be_told(self) -> bool:
        """Whether there are enough draws for any finding at that rate."""
        return self.needed <= self.n

    @classmethod
    def of(
        cls,
        found: Sequence[bool] | NDArray[np.bool_],
        draws: ArrayLike,
        passing: ArrayLike,
        p_values: ArrayLike,
    ) -> BeyondChance:
        """Over units, each with one or more draws.

        Args:
            found: bool ``[n]``, whether a unit has a finding.
            draws: ``[n]``, of its null; ``passing``: ``[n]``, draws that have one too.
            p_values: ``[n]``, of the units.
        """
        is_found = np.asarray(found, dtype=bool)
        every, share = np.asarray(draws), np.asarray(passing) / np.asarray(draws)
        rates = benjamini_hochberg(np.where(is_found, p_values, 1.0))
        n, most = len(is_found), int(every.max(initial=0))
        return cls(
            n=n,
            draws=most,
            found=int(is_found.sum()),
            expected=float(share.sum()),
            beyond=mean_estimate(is_found - share),
            significant=int((is_found & (rates <= ALPHA)).sum()),
            needed=fewest_at_the_floor(n, most),
        )
