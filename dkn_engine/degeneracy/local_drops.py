"""What an answer loses in suppressed sets of neurons, near sets at which that was measured.

With d(S) = ln p(clean) - ln p(S suppressed), in nats, and k disjoint groups among n neurons, k + 1
sets count: all groups, and all groups but one. A neuron more or less in a set changes d by its
slope there and by its interactions with the neurons that were moved before; the first is measured
where the groups are now, the second once, with nothing else suppressed. Nothing here runs the
model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_GROUP = -1
_ENOUGH = 0.8
_OVER = 4.0
_NEURON = 0.001


def suppressed_sets(labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Neurons of all groups, then of all but each one: bool ``[k + 1, n]``.

    Args:
        labels: int64 ``[n]``, the group of each neuron, 0 to k - 1, or ``NO_GROUP``.
        k: number of groups.
    """
    every = labels != NO_GROUP
    return np.stack([every, *(every & (labels != group) for group in range(k))])


@dataclass(frozen=True)
class Goal:
    """How good groups are by the drops of their k + 1 sets.

    The share of the answer's probability that goes without all groups, on the prompt where that is
    least, up to 0.8; less what the drops of all groups but one exceed ``most_alone`` by, on the
    first prompt and in the mean, four times each; less a little for each neuron. So groups are
    sought that together are missed, while any one of them will do.

    Attributes:
        most_alone: nats, what may be lost while one group is there.
        softness: nats over which the limit sets in; 0 for at once.
    """

    most_alone: float
    softness: float = 0.0

    def value(
        self, drops: NDArray[np.float64], n_neurons: NDArray[np.int64] | np.int64
    ) -> NDArray[np.float64]:
        """Of drops ``[S, k + 1, ...]`` on S prompts and numbers of neurons ``[...]``."""
        over = self._over(drops[0, 1:]).sum(axis=0)
        if len(drops) > 1:
            over = over + self._over(drops[:, 1:].mean(axis=0)).sum(axis=0)
        with np.errstate(over="ignore"):  # a guess far from what can be
            lost = np.minimum(_ENOUGH, (1 - np.exp(-drops[:, 0])).min(axis=0))
        value: NDArray[np.float64] = lost - _OVER * over - _NEURON * n_neurons
        return value

    def _over(self, drops: NDArray[np.float64]) -> NDArray[np.float64]:
        beyond = drops - self.most_alone
        if self.softness:
            soft: NDArray[np.float64] = self.softness * np.logaddexp(0, beyond / self.softness)
            return soft
        return np.maximum(0, beyond)


@dataclass(frozen=True, eq=False)
class Pairs:
    """What neurons do one by one and two by two where none, or all, of them are suppressed.

    Attributes:
        base: False about nothing suppressed, True about everything.
        drop: float64 ``[S]``, d there.
        effects: float64 ``[S, n]``, by what d changes when one neuron is suppressed, or is not.
        bends: float64 ``[S, n]``, the part of the effects that is not their slope there.
        interactions: float64 ``[S, n, n]``, by what two together change d beyond that; symmetric,
            0 on the diagonal.
    """

    base: bool
    drop: NDArray[np.float64]
    effects: NDArray[np.float64]
    bends: NDArray[np.float64]
    interactions: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LocalDrops:
    """Drops to second order about the k + 1 sets of some groups, on S prompts.

    Attributes:
        labels: int64 ``[n]``, the groups.
        k: their number.
        drops: float64 ``[S, k + 1]``, d of each set.
        slopes: float64 ``[S, k + 1, n]``, by what d grows with a neuron that the set lacks, or what
            it loses without one that it has as a neuron more would add.
        interactions: float64 ``[S, n, n]``, symmetric, 0 on the diagonal.
    """

    labels: NDArray[np.int64]
    k: int
    drops: NDArray[np.float64]
    slopes: NDArray[np.float64]
    interactions: NDArray[np.float64]

    @classmethod
    def of_pairs(cls, labels: NDArray[np.int64], k: int, about: Pairs) -> LocalDrops:
        """By single neurons and pairs alone, about a set that none of the groups need be near."""
        away = suppressed_sets(labels, k) ^ about.base
        beyond = np.einsum("sab,jb->sja", about.interactions, away.astype(np.float64))
        each = about.effects[:, None] + beyond
        pairs = about.effects[:, None] + beyond / 2
        drops = about.drop[:, None] + np.einsum("ja,sja->sj", away.astype(np.float64), pairs)
        return cls(labels, k, drops, -each if about.base else each, about.interactions)

    def value(self, goal: Goal) -> float:
        """Of the groups themselves."""
        return float(goal.value(self.drops, np.sum(self.labels != NO_GROUP)))

    def improved(self, goal: Goal, most: int, *, release: bool = True) -> NDArray[np.int64]:
        """Labels after at most so many moves of one neuron, each the best there is.

        Ties go to the first group, then the first neuron. Unless ``release``, moves are from group
        to group and from none to one.
        """
        labels, drops = self.labels.copy(), self.drops
        moved = np.zeros((self.k + 1, len(labels)))
        value = self.value(goal)
        for _ in range(most):
            on = suppressed_sets(labels, self.k)
            sign = np.where(on, -1.0, 1.0)
            toggled = sign * (self.slopes + np.einsum("sab,jb->sja", self.interactions, moved))
            best = value + 1e-6, NO_GROUP, -1
            for group in range(NO_GROUP if release else 0, self.k):
                changes = self._joining(group, len(labels)) != on
                values = goal.value(
                    drops[:, :, None] + toggled * changes,
                    np.sum(labels != NO_GROUP) - (labels != NO_GROUP) + (group != NO_GROUP),
                )
                values[labels == group] = -np.inf
                neuron = int(values.argmax())
                if values[neuron] > best[0]:
                    best = float(values[neuron]), group, neuron
            value, group, neuron = best
            if neuron < 0:
                break
            changes = self._joining(group, len(labels))[:, neuron] != on[:, neuron]
            drops = drops + toggled[:, :, neuron] * changes
            moved[:, neuron] += changes * sign[:, neuron]
            labels[neuron] = group
        return labels

    def _joining(self, group: int, n: int) -> NDArray[np.bool_]:
        """Which of the sets hold a neuron of the group, ``[k + 1, n]``."""
        holds = np.full((self.k + 1, n), group != NO_GROUP)
        if group != NO_GROUP:
            holds[1 + group] = False
        return holds
