"""Groups of neurons that cover for one another, grown from measured interactions.

The other way round from clustering: what the filter asks of components is what they are grown for.
Of k groups any one must do while the others are suppressed, and without all of them the answer must
be lost. A fact's neurons are suppressed one by one and their interactions read off gradients
(:mod:`dkn_engine.degeneracy.pair_interactions`); groups that look best by those are measured, with
the slope of every neuron there, and improved from there, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from dkn_engine.config import FilterConfig
from dkn_engine.degeneracy.local_drops import (
    NO_GROUP,
    Goal,
    LocalDrops,
    Pairs,
    suppressed_sets,
)
from dkn_engine.types import HOLDS_FULL, HOLDS_SINGLE

T = TypeVar("T")
# Drops ``[S, R]`` on S prompts in R sets of suppressed neurons, and their derivatives ``[S, R, n]``
# by the closing of each neuron's gate.
Drops = tuple[NDArray[np.float64], NDArray[np.float64]]
# Yields sets of neurons to be suppressed, bool ``[R, n]``, is sent their drops, returns the rest.
Search = Generator[NDArray[np.bool_], Drops, T]

MOST_GROUPS = 4
_STARTS = 6
_SOFTNESS = (0.5, 0.2, 0.08, 0.02, 0.0)
_MOST_MOVES = 300
_ROUNDS = 8
_FIRST_STEP, _LONGEST_STEP = 12, 30
# The part of what one group may cost that is sought, so that rounding leaves it allowed.
_SHARE = 0.95


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of n neurons, and what suppressing them costs.

    Attributes:
        labels: int64 ``[n]``, the group of each neuron, or -1.
        k: number of groups; each has a neuron, unless there are none at all.
        drops: float64 ``[S, k + 1]`` in nats, of all groups, then of all but each, on S prompts.
        n_rows: suppressions measured on each prompt, with their slopes.
        interactions: float64 ``[n, n]`` in nats, of pairs on the first prompt with nothing else
            suppressed; symmetric, 0 on the diagonal. Empty where nothing was measured.
    """

    labels: NDArray[np.int64]
    k: int
    drops: NDArray[np.float64]
    n_rows: int = 0
    interactions: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))

    def passes(self, config: FilterConfig) -> bool:
        """Whether the filter's rule holds on the first prompt."""
        every, others = self.drops[0, 0], self.drops[0, 1:]
        return bool(
            self.k >= 2
            and (others <= _nats(config.min_alone)).all()
            and every - others.max() >= _nats(config.max_none)
        )

    def holds(self) -> bool:
        """Whether, in the mean over the prompts, little goes with one group there, most without."""
        lost = (1 - np.exp(-self.drops)).mean(axis=0)
        return bool(lost[1:].mean() <= HOLDS_SINGLE and lost[0] >= HOLDS_FULL)


def covering_groups(n: int, config: FilterConfig, rng: np.random.Generator) -> Search[Groups]:
    """Groups of n neurons that cover for one another: two, and more as long as those pass too.

    Where pairs of neurons show no groups that pass, since no two of them are missed as long as all
    others are there, but all are, pairs are looked at again with all others suppressed. More than
    two groups are taken if they pass the filter on the first prompt and hold on all. At most
    ``2 n + 327`` suppressions with slopes, on each prompt: 1 + n about nothing, and about
    everything, and that itself; then for 2, 3 and 4 groups 9 + 18, 27 and 27 times one more than
    there are groups.

    Args:
        n: number of neurons.
        config: its ``min_alone`` and ``max_none``.
        rng: for starts.
    """
    if n < 2:
        return Groups(np.full(n, NO_GROUP, dtype=np.int64), 0, np.zeros((1, 1)))
    goal = Goal(_SHARE * min(_nats(config.min_alone), _LARGE))
    pairs = yield from pairs_of(n, base=False)
    search = _Search(goal, pairs)
    best = yield from search.groups(2, rng)
    rows = search.n_rows + (not best.passes(config))
    if not best.passes(config) and (yield from _is_lost(n, config)):
        other = _Search(goal, (yield from pairs_of(n, base=True)))
        found = yield from other.groups(2, rng)
        rows += other.n_rows
        if found.passes(config):
            search, best = other, found
    while best.k < MOST_GROUPS and best.passes(config):
        before = search.n_rows
        more = yield from search.groups(best.k + 1, rng, best.labels)
        rows += search.n_rows - before
        if not (more.passes(config) and more.holds()):
            break
        best = more
    return replace(best, n_rows=rows, interactions=pairs.interactions[0])


def _is_lost(n: int, config: FilterConfig) -> Search[bool]:
    """Whether all neurons together are missed as much as groups must be."""
    drops, _ = yield np.ones((1, n), dtype=bool)
    return bool(drops[0, 0] >= _nats(config.max_none))


def pairs_of(n: int, *, base: bool) -> Search[Pairs]:
    """Effects of n neurons and their interactions about nothing or everything suppressed."""
    sets = np.concatenate([np.zeros((1, n), dtype=bool), np.eye(n, dtype=bool)]) ^ base
    drops, slopes = yield sets
    towards = -slopes if base else slopes
    effects = drops[:, 1:] - drops[:, :1]
    beyond = towards[:, 1:] - towards[:, :1]
    beyond[:, np.arange(n), np.arange(n)] = 0
    interactions = (beyond + beyond.transpose(0, 2, 1)) / 2
    return Pairs(base, drops[:, 0], effects, effects - towards[:, 0], interactions)


_LARGE = 50.0  # nats: more than any answer loses, for a tau of 0


def _nats(share: float) -> float:
    """What is lost where so much of the probability is left."""
    return -math.log(share) if share > 0 else math.inf


class _Search:
    """Of groups of one fact's neurons, by what is known of pairs; counts what it measures."""

    def __init__(self, goal: Goal, pairs: Pairs) -> None:
        self._goal, self._pairs = goal, pairs
        self._n = pairs.effects.shape[1]
        self.n_rows = self._n + 1

    def groups(
        self, k: int, rng: np.random.Generator, fewer: NDArray[np.int64] | None = None
    ) -> Search[Groups]:
        """The best k groups: from starts by pairs, and from ``fewer`` groups to be split."""
        starts = [self._start(k, rng), *([] if fewer is None else [fewer])]
        if self._pairs.base:
            starts.append(self._clustered(k))
        best: LocalDrops | None = None
        for labels in starts:
            end = yield from self._improved((yield from self._measured(labels, k)))
            if best is None or end.value(self._goal) > best.value(self._goal):
                best = end
        assert best is not None
        return _without_empty(best)

    def _clustered(self, k: int) -> NDArray[np.int64]:
        """Labels of k clusters of neurons that act on one another, by average linkage.

        Where the answer is lost, neurons matter to those that they need, and to no others. What is
        not finite, since an answer has become impossible, counts as no interaction.
        """
        strength = np.abs(self._pairs.interactions).mean(axis=0)
        strength = np.where(np.isfinite(strength), strength, 0)
        apart = squareform(strength.max() - strength, checks=False)
        labels: NDArray[np.int64] = fcluster(linkage(apart, "average"), k, "maxclust") - 1
        return labels.astype(np.int64)

    def _improved(self, here: LocalDrops) -> Search[LocalDrops]:
        """Groups after steps that measurement confirms."""
        step = _FIRST_STEP
        for _ in range(_ROUNDS):
            labels = here.improved(self._goal, step)
            if (labels == here.labels).all():
                break
            there = yield from self._measured(labels, here.k)
            if there.value(self._goal) > here.value(self._goal):
                here, step = there, min(2 * step, _LONGEST_STEP)
            else:
                step //= 3
        return here

    def _start(self, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Labels that are best by single effects and interactions, of several starts."""
        best, highest = np.full(self._n, NO_GROUP, dtype=np.int64), -math.inf
        for start in range(_STARTS):
            # About nothing suppressed from few neurons, or none; about everything from all.
            n_seeds = self._n if self._pairs.base else 4 * k * (start > 0)
            seeds = rng.permutation(self._n)[:n_seeds]
            labels = np.full(self._n, NO_GROUP, dtype=np.int64)
            labels[seeds] = np.arange(len(seeds)) % k
            for softness in _SOFTNESS:
                goal = Goal(self._goal.most_alone, softness)
                here = LocalDrops.of_pairs(labels, k, self._pairs)
                # About everything suppressed, to let one group go whole is always tempting.
                release = not self._pairs.base or softness == _SOFTNESS[-1]
                labels = here.improved(goal, _MOST_MOVES, release=release)
            value = LocalDrops.of_pairs(labels, k, self._pairs).value(self._goal)
            if value > highest:
                best, highest = labels, value
        return best

    def _measured(self, labels: NDArray[np.int64], k: int) -> Search[LocalDrops]:
        sets = suppressed_sets(labels, k)
        drops, slopes = yield sets
        self.n_rows += len(sets)
        bends = -self._pairs.bends[:, None] if self._pairs.base else self._pairs.bends[:, None]
        slopes = slopes + np.where(sets, -bends, bends)
        return LocalDrops(labels, k, drops, slopes, self._pairs.interactions)


def _without_empty(found: LocalDrops) -> Groups:
    """Groups numbered by their first neuron; none at all unless every one has a neuron."""
    first = [np.flatnonzero(found.labels == group)[:1].tolist() for group in range(found.k)]
    if not all(first):
        none = np.full(len(found.labels), NO_GROUP, dtype=np.int64)
        return Groups(none, 0, np.zeros((len(found.drops), 1)))
    order = np.argsort([at[0] for at in first])
    number = np.append(np.argsort(order), NO_GROUP)  # Label -1 reads the last one.
    return Groups(number[found.labels], found.k, found.drops[:, [0, *(1 + order)]])
