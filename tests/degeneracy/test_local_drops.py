"""Drops about groups to second order, and moves between groups, beside their plainest forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dkn_engine.degeneracy.local_drops import (
    NO_GROUP,
    Goal,
    LocalDrops,
    Pairs,
    suppressed_sets,
)


def random_pairs(s: int, n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    effects = rng.normal(0.05, 0.1, (s, n))
    matrix = rng.normal(0, 0.1, (s, n, n))
    matrix = (matrix + matrix.transpose(0, 2, 1)) / 2
    matrix[:, np.arange(n), np.arange(n)] = 0
    return effects, matrix


def about_nothing(effects: NDArray[np.float64], matrix: NDArray[np.float64]) -> Pairs:
    return Pairs(False, np.zeros(len(effects)), effects, np.zeros_like(effects), matrix)


def about_everything(effects: NDArray[np.float64], matrix: NDArray[np.float64]) -> Pairs:
    """The same drops, told from the other end."""
    everything = list(range(effects.shape[1]))
    drop = np.array([plain_drop(e, m, everything) for e, m in zip(effects, matrix, strict=True)])
    return Pairs(True, drop, -(effects + matrix.sum(2)), np.zeros_like(effects), matrix)


def plain_drop(effects: NDArray[np.float64], matrix: NDArray[np.float64], on: list[int]) -> float:
    """Of one set on one prompt: single effects and the interactions of its pairs."""
    pairs = itertools.combinations(on, 2)
    return float(sum(effects[a] for a in on) + sum(matrix[a, b] for a, b in pairs))


def plain_drops(
    effects: NDArray[np.float64], matrix: NDArray[np.float64], labels: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    sets = [[a for a, g in enumerate(labels) if g != NO_GROUP]]
    sets += [[a for a in sets[0] if labels[a] != group] for group in range(k)]
    return np.array(
        [[plain_drop(e, m, on) for on in sets] for e, m in zip(effects, matrix, strict=True)]
    )


def test_the_sets_are_all_groups_and_all_but_each() -> None:
    found = suppressed_sets(np.array([1, -1, 0, 1]), 2)
    assert found.astype(int).tolist() == [[1, 0, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0]]
    assert suppressed_sets(np.empty(0, dtype=np.int64), 3).shape == (4, 0)


@pytest.mark.parametrize("pairs", [about_nothing, about_everything])
@pytest.mark.parametrize(("s", "n", "k"), [(1, 7, 2), (3, 6, 3), (2, 1, 2), (1, 0, 2)])
def test_drops_by_pairs(s: int, n: int, k: int, pairs: Any) -> None:
    effects, matrix = random_pairs(s, n, 3)
    labels = np.random.default_rng(4).integers(-1, k, n)
    found = LocalDrops.of_pairs(labels, k, pairs(effects, matrix))
    np.testing.assert_allclose(found.drops, plain_drops(effects, matrix, labels, k), atol=1e-12)


def plainly_improved(
    effects: NDArray[np.float64],
    matrix: NDArray[np.float64],
    labels: NDArray[np.int64],
    k: int,
    goal: Goal,
    most: int,
) -> NDArray[np.int64]:
    """Every move of one neuron tried and everything counted anew; the first best is taken."""

    def value(some: NDArray[np.int64]) -> float:
        return float(goal.value(plain_drops(effects, matrix, some, k), np.sum(some != NO_GROUP)))

    for _ in range(most):
        best, move = value(labels) + 1e-6, None
        for group, neuron in itertools.product(range(NO_GROUP, k), range(len(labels))):
            if labels[neuron] == group:
                continue
            tried = labels.copy()
            tried[neuron] = group
            if value(tried) > best + 1e-12:
                best, move = value(tried), tried
        if move is None:
            break
        labels = move
    return labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("s", "n", "k"), [(1, 7, 2), (2, 6, 3)])
@pytest.mark.parametrize("softness", [0.0, 0.2])
@pytest.mark.parametrize("pairs", [about_nothing, about_everything])
def test_moves_are_those_of_the_plain_search(
    s: int, n: int, k: int, softness: float, pairs: Any, seed: int
) -> None:
    effects, matrix = random_pairs(s, n, seed)
    labels = np.random.default_rng(seed).integers(-1, k, n)
    goal = Goal(0.3, softness)
    for most in (1, 50):
        found = LocalDrops.of_pairs(labels, k, pairs(effects, matrix)).improved(goal, most)
        expected = plainly_improved(effects, matrix, labels, k, goal, most)
        np.testing.assert_array_equal(found, expected)


def test_the_goal_is_the_share_lost_less_what_a_group_alone_may_not_cost() -> None:
    goal = Goal(0.3)
    half = np.log(2)
    # Prompts: all groups lose 1/2 and 3/4; all but one lose 0.1 and 0.5 nats on the first one.
    drops = np.array([[half, 0.1, 0.5], [2 * half, 0.0, 0.3]])
    # Over 0.3: 0.2 on the first prompt, 0.1 in the mean.
    assert goal.value(drops, np.int64(5)) == pytest.approx(0.5 - 4 * (0.2 + 0.1) - 5 * 0.001)
    # What goes beyond 0.8 of the answer counts no more.
    most = np.array([[9.0, 0.0, 0.0]])
    assert goal.value(most, np.int64(0)) == pytest.approx(0.8)
    # A soft limit is above the hard one, by softness * ln 2 at the limit itself.
    at = np.array([[half, 0.3, 0.3]])
    assert Goal(0.3, 0.1).value(at, np.int64(0)) == pytest.approx(0.5 - 4 * 2 * 0.1 * half)
