"""The degenerate family of a lattice from as few of its subsets as tell it."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from dkn_engine.degeneracy.lattice import Lattice


class FamilySearch:
    """Asks for subsets until what is known has the same family as the whole lattice.

    A family needs all of its subsets with one member left to keep ``min_alone``: one of those that
    does not rules out every family that it lacks a member of. So subsets are asked for that many
    families of two or more members have in common, and families whose subsets all keep enough.
    Whatever the answers, :func:`dkn_engine.degeneracy.lattice.degenerate_family` is that of the
    whole lattice in the end; the whole, and each member alone, are always asked for.

    With ``any_family`` it ends with the first family that passes, which need not be that one:
    ``passes`` is what it tells.

    Args:
        q: number of members.
        masks: int64, ascending, the subsets that may be asked for; nothing, everything and each
            member alone are among them.
        min_alone, max_none: as in ``degenerate_family``.
        any_family: whether there is a family is all that is asked.

    Attributes:
        passes: whether a family passes, of those that have been asked for.
    """

    def __init__(
        self,
        q: int,
        masks: NDArray[np.int64],
        min_alone: float,
        max_none: float,
        *,
        any_family: bool = False,
    ) -> None:
        self.q, self._min_alone, self._max_none = q, min_alone, max_none
        self._any_family, self.passes = any_family, False
        self._known: dict[int, float] = {}
        allowed = set(masks.tolist())
        families = ((m, tuple(_facets(m))) for m in allowed if m.bit_count() >= 2)
        self._open = {m: facets for m, facets in families if allowed.issuperset(facets)}
        whole = set() if any_family else {(1 << q) - 1}
        self._wanted = sorted({0, *whole, *(1 << i for i in range(q))})

    @property
    def wanted(self) -> list[int]:
        """Masks whose probabilities are needed now, ascending; none at the end."""
        return self._wanted

    @property
    def lattice(self) -> Lattice:
        """All that is known."""
        masks = sorted(self._known)
        p = np.array([self._known[m] for m in masks])
        return Lattice(self.q, np.array(masks, dtype=np.int64), p)

    def tell(self, answers: Mapping[int, float]) -> None:
        """The probabilities of the masks that were wanted."""
        self._known |= answers
        least, asked = 2, set()
        undecided: dict[int, list[int]] = {}
        for family, facets in list(self._open.items()):
            known = [self._known[m] for m in facets if m in self._known]
            if not self._known[0] > 0 or not all(p >= self._keeps for p in known):
                del self._open[family]
            elif len(known) < len(facets):
                undecided[family] = [m for m in facets if m not in self._known]
            elif family not in self._known:
                asked.add(family)
            else:
                del self._open[family]
                if self._known[family] <= self._max_none * min(known):
                    self.passes, least = True, max(least, family.bit_count())
        if self.passes and self._any_family:
            self._open.clear()
        # A smaller family than one that passes is not wanted.
        self._open = {m: f for m, f in self._open.items() if m.bit_count() >= least}
        asked &= self._open.keys()
        asked |= self._cover({m: f for m, f in undecided.items() if m in self._open})
        self._wanted = sorted(m for m in asked if m not in self._known)

    @property
    def _keeps(self) -> float:
        return self._min_alone * self._known[0]

    def _cover(self, undecided: Mapping[int, list[int]]) -> set[int]:
        """One facet or more of every family, those of many families first (greedy cover)."""
        gain = Counter(m for facets in undecided.values() for m in facets)
        queue = [(-n, -self._loss(m), m) for m, n in gain.items()]
        heapq.heapify(queue)
        left, chosen = set(undecided), set()
        while left:
            count, loss, mask = heapq.heappop(queue)
            covered = {mask | 1 << i for i in range(self.q)} & left
            covered = {family for family in covered if mask in undecided[family]}
            if len(covered) < -count:  # Others covered them meanwhile.
                if covered:
                    heapq.heappush(queue, (-len(covered), loss, mask))
                continue
            chosen.add(mask)
            left -= covered
        return chosen

    def _loss(self, mask: int) -> float:
        """How much members would lose that act independently: what loses much rules out more."""
        clean = self._known[0]
        shares = [self._known[m] / clean for m in _singles(mask)]
        return sum(-math.log(share) if share > 0 else math.inf for share in shares)


def _singles(mask: int) -> Iterator[int]:
    """Each of a mask's bits."""
    return (1 << i for i in range(mask.bit_length()) if mask >> i & 1)


def _facets(mask: int) -> Iterator[int]:
    """A mask without each of its bits."""
    return (mask ^ bit for bit in _singles(mask))
