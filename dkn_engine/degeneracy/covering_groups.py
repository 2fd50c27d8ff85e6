"""Groups of neurons that cover for one another, grown from measured interactions.

The other way round from clustering: what the filter asks of components is what they are grown for.
Of k groups any one must do while the others are suppressed, and without all of them the answer must
be lost. A fact's neurons are suppressed one by one and their interactions read off gradients
(:mod:`dkn_engine.degeneracy.pair_interactions`); groups that look best by those are measured, with
the slope of every neuron there, and improved from there, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import FilterConfig
from dkn_engine.degeneracy.local_drops import NO_GROUP, Goal, LocalDrops, suppressed_sets
from dkn_engine.types import HOLDS_FULL, HOLDS_SINGLE

# Of sets of suppressed neurons ``[R, n]`` the drops ``[S, R]`` on S prompts, and their derivatives
# ``[S, R, n]`` by the closing of each neuron's gate.
Measure = Callable[[NDArray[np.bool_]], tuple[NDArray[np.float64], NDArray[np.float64]]]

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
    """

    labels: NDArray[np.int64]
    k: int
    drops: NDArray[np.float64]
    n_rows: int

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


def covering_groups(
    measure: Measure, n: int, config: FilterConfig, rng: np.random.Generator
) -> Groups:
    """Groups of n neurons that cover for one another: two, and more as long as those pass too.

    More than two groups are taken if they pass the filter on the first prompt and hold on all. At
    most ``n + 190`` suppressions with slopes, on each prompt: 1 + n, then for 2, 3 and 4 groups
    9, 18 and 18 times one more than there are groups.

    Args:
        measure: asks the model.
        n: number of neurons.
        config: its ``min_alone`` and ``max_none``.
        rng: for starts.
    """
    search = _Search.begun(measure, n, Goal(_SHARE * min(_nats(config.min_alone), _LARGE)))
    best = search.groups(2, rng)
    while best.k < MOST_GROUPS and best.passes(config):
        more = search.groups(best.k + 1, rng, best.labels)
        if not (more.passes(config) and more.holds()):
            break
        best = more
    return best


_LARGE = 50.0  # nats: more than any answer loses, for a tau of 0


def _nats(share: float) -> float:
    """What is lost where so much of the probability is left."""
    return -math.log(share) if share > 0 else math.inf


@dataclass(eq=False)
class _Search:
    """What is measured of a fact's neurons once; attributes as in :class:`LocalDrops`.

    ``bends`` are the second orders of single neurons: effect less slope, ``[S, n]``.
    """

    measure: Measure
    goal: Goal
    effects: NDArray[np.float64]
    bends: NDArray[np.float64]
    interactions: NDArray[np.float64]
    n_rows: int

    @classmethod
    def begun(cls, measure: Measure, n: int, goal: Goal) -> _Search:
        sets = np.concatenate([np.zeros((1, n), dtype=bool), np.eye(n, dtype=bool)])
        drops, slopes = measure(sets)
        effects = drops[:, 1:] - drops[:, :1]
        beyond = slopes[:, 1:] - slopes[:, :1]
        beyond[:, np.arange(n), np.arange(n)] = 0
        interactions = (beyond + beyond.transpose(0, 2, 1)) / 2
        return cls(measure, goal, effects, effects - slopes[:, 0], interactions, n + 1)

    def groups(
        self, k: int, rng: np.random.Generator, fewer: NDArray[np.int64] | None = None
    ) -> Groups:
        """The best k groups: from a start by interactions, and from ``fewer`` groups to be split.

        Only the second finds groups of which any one of three or more will do: no two neurons
        interact there.
        """
        starts = [self._start(k, rng)] if fewer is None else [self._start(k, rng), fewer]
        ends = [self._improved(self._measured(labels, k)) for labels in starts]
        best = max(ends, key=lambda found: found.value(self.goal))  # the first of equal ones
        return _without_empty(best, self.n_rows)

    def _improved(self, here: LocalDrops) -> LocalDrops:
        """Groups after steps that measurement confirms."""
        step = _FIRST_STEP
        for _ in range(_ROUNDS):
            labels = here.improved(self.goal, step)
            if (labels == here.labels).all():
                break
            there = self._measured(labels, here.k)
            if there.value(self.goal) > here.value(self.goal):
                here, step = there, min(2 * step, _LONGEST_STEP)
            else:
                step //= 3
        return here

    def _start(self, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Labels that are best by single effects and interactions, of several starts."""
        n = self.effects.shape[1]
        best, highest = np.full(n, NO_GROUP, dtype=np.int64), -math.inf
        for start in range(_STARTS):
            labels = np.full(n, NO_GROUP, dtype=np.int64)
            if start:
                seeds = rng.permutation(n)[: 4 * k]
                labels[seeds] = np.arange(len(seeds)) % k
            for softness in _SOFTNESS:
                goal = Goal(self.goal.most_alone, softness)
                labels = self._by_pairs(labels, k).improved(goal, _MOST_MOVES)
            value = self._by_pairs(labels, k).value(self.goal)
            if value > highest:
                best, highest = labels, value
        return best

    def _by_pairs(self, labels: NDArray[np.int64], k: int) -> LocalDrops:
        return LocalDrops.of_pairs(labels, k, self.effects, self.interactions)

    def _measured(self, labels: NDArray[np.int64], k: int) -> LocalDrops:
        sets = suppressed_sets(labels, k)
        drops, slopes = self.measure(sets)
        self.n_rows += len(sets)
        bend = np.where(sets, -self.bends[:, None], self.bends[:, None])
        return LocalDrops(labels, k, drops, slopes + bend, self.interactions)


def _without_empty(found: LocalDrops, n_rows: int) -> Groups:
    """Groups numbered by their first neuron; none at all unless every one has a neuron."""
    first = [np.flatnonzero(found.labels == group)[:1].tolist() for group in range(found.k)]
    if not all(first):
        none = np.full(len(found.labels), NO_GROUP, dtype=np.int64)
        return Groups(none, 0, np.zeros((len(found.drops), 1)), n_rows)
    order = np.argsort([at[0] for at in first])
    number = np.append(np.argsort(order), NO_GROUP)  # Label -1 reads the last one.
    return Groups(number[found.labels], found.k, found.drops[:, [0, *(1 + order)]], n_rows)
