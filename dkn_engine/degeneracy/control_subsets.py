"""Of which subsets of a family a control is measured, and when that is precise enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import CONTROL_EXACT, CONTROL_SAMPLES
from dkn_engine.degeneracy.lattice import Lattice, drops, subset_masks
from dkn_engine.types import Drops

_FIRST_PAIRS = 3
_MOST_PREDICTED = 10  # members of families whose subsets are all predicted
_NONE = np.empty(0, dtype=np.int64)


def _predicted(lattice: Lattice, masks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Relative drops of subsets by what the whole family and each member alone lose, ``[m]``.

    Log-drops of members add up, and what the family loses beyond is shared equally among the pairs
    of members. NaN unless a lattice has each member alone.
    """
    q = lattice.q
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = np.log([lattice.at(m) for m in (0, (1 << q) - 1, *(1 << i for i in range(q)))])
        alone, whole = log_p[0] - log_p[2:], log_p[0] - log_p[1]
        member = (masks[:, None] >> np.arange(q)) & 1
        size = member.sum(axis=1)
        shared = size * (size - 1) / max(1, q * (q - 1))
        log_drop: NDArray[np.float64] = member @ alone + shared * (whole - alone.sum())
    return -np.expm1(-log_drop)


@dataclass(frozen=True, eq=False)
class Subsets:
    """The subsets of a family that its controls suppress.

    Without a precision these are the same for all: every subset, or a sample of those of large
    families. With one they are nothing, everything, each member alone, and pairs of a proper subset
    and its complement. Where members act independently the two drops of a pair add up to the whole
    family's, so that few pairs tell the mean over all proper subsets.

    Attributes:
        q: number of members.
        precision: half the width that a 95% interval of a mean drop may have; 0 for no limit.
        sample: int64, ascending, the masks without a precision.
        pairs: int64 ``[n, 2]``, distinct masks and their complements, in random order.
    """

    q: int
    precision: float
    sample: NDArray[np.int64]
    pairs: NDArray[np.int64]

    @classmethod
    def of(cls, q: int, precision: float, rng: np.random.Generator) -> Subsets:
        """The subsets of ``q`` members, by random numbers of their own."""
        if not precision:
            sample = subset_masks(q, CONTROL_EXACT, CONTROL_SAMPLES, rng)
            return cls(q, 0.0, sample, np.stack([_NONE, _NONE], axis=1))
        full, n = (1 << q) - 1, (1 << q - 1) - 1
        most = max(_FIRST_PAIRS, (CONTROL_SAMPLES - 2 - q) // 2)
        # One of each pair lacks the last member.
        if q <= CONTROL_EXACT:
            half = 1 + rng.permutation(n)
        else:
            seen: dict[int, None] = {}
            while len(seen) < most:
                seen[int(rng.integers(1, n, endpoint=True))] = None
            half = np.array(list(seen))
        return cls(q, precision, _NONE, np.stack([half, full ^ half], axis=1).astype(np.int64))

    def of_draw(self, i: int, alone: bool) -> NDArray[np.int64]:
        """The masks of draw ``i``, ascending: one pair, and each member ``alone`` if wanted."""
        if not self.precision:
            return self.sample
        n = len(self.pairs)
        return self._masks(self.pairs[i % n : i % n + 1] if n else self.pairs, alone)

    def rounds(self) -> Iterator[NDArray[np.int64]]:
        """Masks, ascending, more from round to round."""
        if not self.precision:
            yield self.sample
            return
        n = min(_FIRST_PAIRS, len(self.pairs))
        yield self._masks(self.pairs[:n], alone=True)
        while n < len(self.pairs):
            n = min(2 * n, len(self.pairs))
            yield self._masks(self.pairs[:n], alone=True)

    def _masks(self, pairs: NDArray[np.int64], alone: bool) -> NDArray[np.int64]:
        single = [1 << i for i in range(self.q)] if alone else []
        return np.unique([0, (1 << self.q) - 1, *single, *pairs.ravel().tolist()])

    def drops(self, lattice: Lattice) -> Drops:
        """As :func:`dkn_engine.degeneracy.lattice.drops`, the partial drop over whole pairs."""
        found = drops(lattice)
        if not self.precision:
            return found
        by_pair = self.pair_drops(lattice)
        mean = float(by_pair.mean()) if len(by_pair) else math.nan
        return dataclasses.replace(found, partial_drop=mean)

    def pair_drops(self, lattice: Lattice) -> NDArray[np.float64]:
        """Mean relative drop of each pair of which a lattice has both masks.

        What :func:`_predicted` says of a pair counts as over all pairs instead, which changes no
        mean over all of them, and leaves less between one pair and another (a control variate).
        """
        there = self.pairs[np.isin(self.pairs, lattice.masks).all(axis=1)]
        at = np.searchsorted(lattice.masks, there)
        clean = lattice.at(0)
        if not clean > 0:
            return np.full(len(there), np.nan)
        relative: NDArray[np.float64] = 1 - lattice.probabilities[at].mean(axis=1) / clean
        if self.q > _MOST_PREDICTED or not len(there):
            return relative
        every = np.arange(1, (1 << self.q) - 1)
        predicted = _predicted(lattice, every)
        if not np.isfinite(predicted).all():
            return relative
        relative += predicted.mean() - predicted[there - 1].mean(axis=1)
        return relative

    def is_narrow(self, values: ArrayLike) -> bool:
        """Whether the mean of so many measurements is as precise as asked; NaN are left out."""
        array = np.asarray(values, dtype=np.float64)
        array = array[np.isfinite(array)]
        n = len(array)
        if n < 2:
            return n == 0  # What is nowhere defined does not become so by more draws.
        from scipy.special import stdtrit

        half = stdtrit(n - 1, 0.975) * np.std(array, ddof=1) / math.sqrt(n)
        return bool(half <= self.precision)
