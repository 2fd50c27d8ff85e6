"""The subset lattice of a family of components, and everything that is read off it.

Index m of the lattice is a bit mask: bit i set means that component i is suppressed, so index 0
is the clean model. Nothing here runs the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.types import Drops


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """Answer probabilities over subsets of ``q`` suppressed components.

    Attributes:
        q: number of components.
        masks: int64 ``[m]``, ascending; ``arange(2**q)`` unless sampled.
        probabilities: float64 ``[m]``, of each mask.
        objective: float64 ``[m]``, attribution's objective; None where it is the probability, or
            was not measured.
    """

    q: int
    masks: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    objective: NDArray[np.float64] | None = None

    def at(self, mask: int) -> float:
        """Probability with the mask's components suppressed; NaN if it was not sampled."""
        return self._value(self.probabilities, mask)

    def objectives(self) -> tuple[float, ...]:
        """The objective with nothing, with each component alone and with all suppressed.

        NaN where that was not sampled; empty without an objective.
        """
        if self.objective is None:
            return ()
        alone = (1 << i for i in range(self.q))
        return tuple(self._value(self.objective, m) for m in (0, *alone, (1 << self.q) - 1))

    def _value(self, values: NDArray[np.float64], mask: int) -> float:
        i = int(np.searchsorted(self.masks, mask))
        found = i < len(self.masks) and self.masks[i] == mask
        return float(values[i]) if found else float("nan")

    def restrict(self, members: Sequence[int]) -> Lattice:
        """The lattice of some of the components, with all others active."""
        inside = np.flatnonzero((self.masks & ~np.int64(mask_of(members))) == 0)
        masks = np.zeros(len(inside), dtype=np.int64)
        for bit, member in enumerate(members):
            masks |= ((self.masks[inside] >> member) & 1) << bit
        order = np.argsort(masks)
        chosen = inside[order]
        read = None if self.objective is None else self.objective[chosen]
        return Lattice(len(members), masks[order], self.probabilities[chosen], read)


def mask_of(members: Sequence[int]) -> int:
    """The mask with the bits of the given components."""
    return sum(1 << int(i) for i in members)


def members_of(mask: int) -> tuple[int, ...]:
    """The components whose bits are set, ascending."""
    return tuple(i for i in range(int(mask).bit_length()) if mask >> i & 1)


def subset_masks(
    q: int, exact_limit: int, n_samples: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Masks to evaluate, int64, ascending: all ``2**q`` up to the limit, above it a sample.

    A sample always holds nothing, everything, each component alone and all but each component;
    the rest is drawn uniformly without replacement until there are ``n_samples`` (or more, if
    those are more).
    """
    if q <= exact_limit or 1 << q <= n_samples:
        return np.arange(1 << q, dtype=np.int64)
    full = (1 << q) - 1
    fixed = {0, full, *(1 << i for i in range(q)), *(full ^ 1 << i for i in range(q))}
    found = set(fixed)
    while len(found) < n_samples:
        found.update(rng.integers(0, full, size=n_samples - len(found), endpoint=True).tolist())
    return np.array(sorted(found), dtype=np.int64)


def drops(lattice: Lattice) -> Drops:
    """Partial, full and single drop, redundancy and excess of the family; NaN where undefined.

    The partial drop is the mean over the proper non-empty subsets; over a sample it is the
    mean of the strata (one suppressed, all but one, the rest) by the sizes they have in full.
    """
    q, clean = lattice.q, lattice.at(0)
    if q == 0 or not clean > 0:
        nothing = float("nan")
        return Drops(nothing, nothing, n_redundancy=0, objective=lattice.objectives())
    full = (1 << q) - 1
    relative = 1 - lattice.probabilities / clean
    alone = [lattice.at(1 << i) for i in range(q)]
    redundancy, excess = _redundancy(alone, lattice.at(full), clean)
    return Drops(
        partial_drop=_partial(lattice.masks, relative, q),
        full_drop=1 - lattice.at(full) / clean,
        redundancy=redundancy,
        excess=excess,
        n_redundancy=int(math.isfinite(redundancy)),
        single_drop=1 - math.fsum(alone) / (q * clean),
        objective=lattice.objectives(),
    )


def _partial(masks: NDArray[np.int64], relative: NDArray[np.float64], q: int) -> float:
    size = np.array([int(m).bit_count() for m in masks])
    # The strata that a sample of the whole lattice holds whole (1 and q - 1, where those are
    # proper sizes), then all sizes between. Each counts as often as it has subsets.
    ends = {1, q - 1} - {0, q}
    strata = [(math.comb(q, k), size == k) for k in sorted(ends)]
    between = (size > 1) & (size < q - 1)
    strata.append(((1 << q) - 2 - sum(n for n, _ in strata), between))
    there = [(n, float(relative[at].mean())) for n, at in strata if n and at.any()]
    weight = sum(n for n, _ in there)
    return sum(n * mean for n, mean in there) / weight if weight else float("nan")


def _redundancy(alone: Sequence[float], none: float, clean: float) -> tuple[float, float]:
    """Log-drop of all suppressed / sum of the log-drops of each alone, and their difference."""
    with np.errstate(divide="ignore", invalid="ignore"):
        together = np.log(clean) - np.log(none)
        single = float(np.sum(np.log(clean) - np.log(alone)))
    if not np.isfinite(together) or not np.isfinite(single):
        return float("nan"), float("nan")
    # Where suppressing single components does not lower the probability the ratio says nothing.
    ratio = float(together / single) if single > 0 else float("nan")
    return ratio, float(together - single)


def degenerate_family(
    lattice: Lattice, persistence: Sequence[float], min_alone: float, max_none: float
) -> tuple[int, ...]:
    """The largest degenerate family, ascending indices; empty if there is none.

    A family S of at least two components is degenerate if each member, with the other members
    suppressed, keeps ``min_alone`` (tau_2) of the clean probability, and all suppressed leave at
    most ``max_none`` (tau_3) of the weakest of those. Ties go to the greatest total persistence,
    then to the more persistent components. Families of which a mask was not sampled are not judged.
    """
    known = dict(zip(lattice.masks.tolist(), lattice.probabilities.tolist(), strict=True))
    clean = known.get(0, math.nan)
    if not clean > 0:
        return ()
    least = min_alone * clean
    best: tuple[tuple[float, ...], tuple[int, ...]] | None = None
    for mask, none in known.items():
        members = members_of(mask)
        if len(members) < 2:
            continue
        alone = [known.get(mask ^ 1 << i, math.nan) for i in members]
        # NaN (not sampled) compares as False.
        if not all(p >= least for p in alone) or not none <= max_none * min(alone):
            continue
        # fsum, since equal totals must not differ by the order of their terms.
        total = math.fsum(persistence[i] for i in members)
        key = (float(len(members)), total, *(-float(i) for i in members))
        if best is None or key > best[0]:
            best = key, members
    return () if best is None else best[1]
