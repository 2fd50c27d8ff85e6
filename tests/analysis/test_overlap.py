"""Overlaps against counting all sets there are, scipy's hypergeometric law, and random draws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import hypergeom

from dkn_engine.analysis.experiments.evolvability.overlap import above, chance, overlap, top_changed
from dkn_engine.errors import UserError
from dkn_engine.neurons import random_sets

TARGET = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=bool)
SETS = {
    "three layers": [(0, 0), (0, 1), (1, 2), (2, 4)],
    "one layer": [(0, 0), (0, 2), (0, 3)],
    "none": [],
    "a whole layer": [(0, i) for i in range(5)],
    "no hit": [(0, 1), (0, 4), (1, 0)],
}


def counted(neurons: list[tuple[int, int]], by_layer: bool) -> np.ndarray:
    """Overlaps of all sets that could have been drawn."""
    every = [(layer, i) for layer in range(3) for i in range(5)]
    if not by_layer:
        return np.array(
            [sum(TARGET[n] for n in s) for s in itertools.combinations(every, len(neurons))]
        )
    numbers = [sum(layer == at for at, _ in neurons) for layer in range(3)]
    layers = [list(itertools.combinations(range(5), n)) for n in numbers]
    return np.array(
        [
            sum(TARGET[layer, i] for layer, chosen in enumerate(sets) for i in chosen)
            for sets in itertools.product(*layers)
        ]
    )


@pytest.mark.parametrize("by_layer", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_it_is_what_counting_all_sets_gives(name: str, by_layer: bool) -> None:
    neurons, overlaps = SETS[name], counted(SETS[name], by_layer)
    found = overlap(np.array(neurons, dtype=np.int32).reshape(-1, 2), TARGET, by_layer=by_layer)
    assert found.size == len(neurons)
    assert found.observed == sum(TARGET[n] for n in neurons)
    assert found.expected == pytest.approx(overlaps.mean(), abs=1e-12)
    tail = min((overlaps <= found.observed).mean(), (overlaps >= found.observed).mean())
    assert found.p_value == pytest.approx(min(1, 2 * tail), abs=1e-12)
    # Outside of the interval is at most a fortieth on each side, and one step in would be more.
    assert (overlaps < found.low).mean() <= 0.025 < (overlaps <= found.low).mean()
    assert (overlaps > found.high).mean() <= 0.025 < (overlaps >= found.high).mean()


@pytest.mark.parametrize(("n", "k", "m"), [(70, 461, 46080), (900, 2304, 46080), (5, 0, 10)])
def test_one_layer_is_the_hypergeometric_law(n: int, k: int, m: int) -> None:
    target = np.zeros((1, m), dtype=bool)
    target[0, :k] = True
    neurons = np.stack([np.zeros(n), np.arange(n) * (m // n)], axis=1).astype(np.int32)
    for by_layer in (True, False):
        found = overlap(neurons, target, by_layer=by_layer)
        law = hypergeom(m, k, n)
        assert found.expected == pytest.approx(n * k / m, abs=1e-9)
        low, high = law.ppf(0.025), law.ppf(0.975)
        assert (found.low, found.high) == (low, high)
        tail = min(law.cdf(found.observed), law.sf(found.observed - 1))
        assert found.p_value == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_matched_draws_scatter_as_chance_says() -> None:
    rng = np.random.default_rng(0)
    target = rng.random((6, 50)) < np.linspace(0.02, 0.6, 6)[:, None]
    mine = [(layer, i) for layer in range(6) for i in range(2 * layer)]
    neurons = np.array(mine, dtype=np.int32)
    found = overlap(neurons, target)
    none = np.empty((0, 2), dtype=np.int32)
    draws = [random_sets([neurons], none, 50, rng)[0] for _ in range(2000)]
    hits = np.array([target[d[:, 0], d[:, 1]].sum() for d in draws])
    pmf = chance(np.bincount(neurons[:, 0], minlength=6), target.sum(1), np.full(6, 50))
    spread = float(np.sqrt(pmf @ (np.arange(len(pmf)) - found.expected) ** 2))
    # Means of 2,000 draws scatter by a 45th of that; four times it has a chance of 6e-5.
    assert abs(hits.mean() - found.expected) < 4 * spread / 2000**0.5
    assert (hits < found.low).mean() < 0.025 + 4 * (0.025 / 2000) ** 0.5
    assert (hits > found.high).mean() < 0.025 + 4 * (0.025 / 2000) ** 0.5


def test_chance_sums_to_one_for_large_sets() -> None:
    pmf = chance([40] * 30, [77] * 30, [1536] * 30)
    assert len(pmf) == 1201
    assert pmf.sum() == pytest.approx(1, abs=1e-12)
    assert pmf @ np.arange(1201) == pytest.approx(30 * 40 * 77 / 1536, rel=1e-10)


def test_the_top_are_the_largest_and_ties_go_in_order() -> None:
    change = np.array([[0.0, 3.0, 1.0], [1.0, 2.0, 1.0]])
    assert top_changed(change, 0).sum() == 0
    assert np.argwhere(top_changed(change, 3)).tolist() == [[0, 1], [0, 2], [1, 1]]
    assert top_changed(change, 6).all()
    with pytest.raises(UserError, match="between 0 and 6"):
        top_changed(change, 7)


def test_above_is_strict_and_relative_to_the_largest() -> None:
    change = np.array([[0.0, 4.0], [2.0, 2.1]])
    assert np.argwhere(above(change, 0.5)).tolist() == [[0, 1], [1, 1]]
    assert not above(np.zeros((2, 2)), 0.5).any()
