"""Controls to a precision: their subsets, when they stop, and that the means are those of all."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from dkn_engine.config import CONTROL_EXACT, CONTROL_SAMPLES, FilterConfig
from dkn_engine.degeneracy import controls
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.control_subsets import Subsets
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.lattice import Lattice, drops
from dkn_engine.errors import UserError
from dkn_engine.models.layout import find_layout
from dkn_engine.types import Drops
from tests.support.tiny import N_LAYERS, sequences, tiny

LOCATED = np.array([[0, 0], [1, 1]], dtype=np.int32)


def subsets_of(q: int, precision: float = 0.01, seed: int = 0) -> Subsets:
    return Subsets.of(q, precision, np.random.default_rng(seed))


def family(q: int) -> list[np.ndarray]:
    return [np.array([[i % N_LAYERS, i], [i % N_LAYERS, i + 20]], dtype=np.int32) for i in range(q)]


@pytest.mark.parametrize("q", [1, 2, 3, 4, 5, 6, 8, 30, 62])
def test_pairs_are_distinct_proper_subsets_with_their_complements(q: int) -> None:
    full = (1 << q) - 1
    pairs = subsets_of(q).pairs
    n = max(3, (CONTROL_SAMPLES - 2 - q) // 2) if q > CONTROL_EXACT else (1 << q - 1) - 1
    assert pairs.shape == (n, 2)
    assert pairs.dtype == np.int64
    masks = [int(m) for m in pairs.ravel()]
    assert len(set(masks)) == 2 * n
    assert all(0 < m < full for m in masks)
    assert all(int(a) ^ int(b) == full for a, b in pairs)
    np.testing.assert_array_equal(subsets_of(q).pairs, pairs)
    last = list(subsets_of(q).rounds())[-1]
    assert len(last) <= max(CONTROL_SAMPLES, 2 + q + 6)
    if q <= CONTROL_EXACT:
        assert last.tolist() == list(range(1 << q))


def test_pairs_are_drawn_uniformly() -> None:
    """The first of 31 pairs of six members; a binomial, five standard deviations."""
    n = 3000
    first = [int(subsets_of(6, seed=s).pairs[0, 0]) for s in range(n)]
    counts = np.bincount(first, minlength=32)[1:]
    assert counts.shape == (31,)
    assert np.abs(counts / n - 1 / 31).max() < 5 * math.sqrt(1 / 31 / n)


@pytest.mark.parametrize("q", [1, 2, 5, 8])
def test_every_round_holds_the_one_before_and_what_is_always_asked(q: int) -> None:
    rounds = list(subsets_of(q).rounds())
    for one, more in itertools.pairwise(rounds):
        assert np.isin(one, more).all()
        assert len(one) < len(more)
    for masks in [*rounds, subsets_of(q).of_draw(3, True)]:
        assert (np.diff(masks) > 0).all()
        assert np.isin([0, (1 << q) - 1, *(1 << i for i in range(q))], masks).all()
    few = subsets_of(q).of_draw(3, False)
    assert len(few) == (2 if q == 1 else 4)


@pytest.mark.parametrize("q", [2, 3, 5])
def test_over_all_pairs_the_partial_drop_is_that_of_the_lattice(q: int) -> None:
    masks = np.arange(1 << q)
    p = np.random.default_rng(q).random(1 << q)
    found, expected = subsets_of(q).drops(Lattice(q, masks, p)), drops(Lattice(q, masks, p))
    assert found.partial_drop == pytest.approx(expected.partial_drop, rel=1e-12)
    ours, theirs = (
        np.hstack(dataclasses.astuple(dataclasses.replace(d, partial_drop=0.0)))
        for d in (found, expected)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_one_pair_tells_the_partial_drop_of_members_whose_drops_add_up() -> None:
    """Every pair's are the whole family's, half of it each on average; too many to be predicted."""
    q, subsets = 11, subsets_of(11)
    each = np.random.default_rng(0).random(q) / 20
    masks = next(subsets.rounds())
    drop = np.array([sum(each[i] for i in range(q) if m >> i & 1) for m in masks.tolist()])
    lattice = Lattice(q, masks, 0.7 * (1 - drop))
    np.testing.assert_allclose(subsets.pair_drops(lattice), each.sum() / 2, rtol=1e-12)
    assert subsets.drops(lattice).partial_drop == pytest.approx(each.sum() / 2, rel=1e-12)


@pytest.mark.parametrize("each_pair", [0.0, 0.1])
@pytest.mark.parametrize("q", [2, 3, 8, 10])
def test_one_pair_tells_the_partial_drop_of_members_that_interact_in_pairs(
    q: int, each_pair: float
) -> None:
    """Log-drops that add up, and as much more for every two members: all of it is predicted."""
    alone = np.random.default_rng(q).random(q)
    every = np.arange(1 << q)
    member = (every[:, None] >> np.arange(q)) & 1
    size = member.sum(1)
    p = 0.9 * np.exp(-member @ alone - each_pair * size * (size - 1) / 2)
    subsets = subsets_of(q)
    masks = next(subsets.rounds())
    exact = 1 - p[1:-1].mean() / 0.9
    found = subsets.pair_drops(Lattice(q, masks, p[masks]))
    np.testing.assert_allclose(found, exact, rtol=1e-12)


@pytest.mark.parametrize("q", [3, 6, 8])
def test_the_mean_over_all_pairs_is_exact_whatever_is_predicted(q: int) -> None:
    p = np.random.default_rng(q).random(1 << q)
    half = np.arange(1, 1 << q - 1)
    pairs = np.stack([half, (1 << q) - 1 ^ half], axis=1)
    subsets = dataclasses.replace(subsets_of(q), pairs=pairs)
    found = subsets.pair_drops(Lattice(q, np.arange(1 << q), p))
    assert np.ptp(found) > 0.1
    assert found.mean() == pytest.approx(1 - p[1:-1].mean() / p[0], rel=1e-12)


def test_probabilities_of_zero_are_not_predicted() -> None:
    q, subsets = 4, subsets_of(4)
    p = np.random.default_rng(0).random(1 << q)
    p[-1] = 0.0
    found = subsets.pair_drops(Lattice(q, np.arange(1 << q), p))
    np.testing.assert_allclose(found, 1 - p[subsets.pairs].mean(1) / p[0], rtol=1e-12)
    p[0] = 0.0
    assert np.isnan(subsets.pair_drops(Lattice(q, np.arange(1 << q), p))).all()


@pytest.mark.parametrize("n", [2, 3, 20])
def test_narrow_is_half_of_students_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    low, high = scipy.stats.t.interval(
        0.95, n - 1, loc=values.mean(), scale=scipy.stats.sem(values)
    )
    half = (high - low) / 2
    assert subsets_of(3, 0.999).is_narrow(values * 0.999 / half * (1 - 1e-9))
    assert not subsets_of(3, 0.999).is_narrow(values * 0.999 / half * (1 + 1e-9))
    # What is undefined is left out; what is so everywhere has nothing to wait for.
    with_nan = [*(values * 0.999 / half * (1 + 1e-9)), math.nan, math.inf]
    assert not subsets_of(3, 0.999).is_narrow(with_nan)
    assert subsets_of(3).is_narrow([math.nan])
    assert not subsets_of(3).is_narrow([0.1])


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    model = tiny("llama")
    return Prompts(model, find_layout(model), sequences())


def random_drops(prompts: Prompts, q: int, precision: float, n: int, seed: int = 1) -> Drops:
    asked = controls.Suppressed(prompts, [2], family(q))
    rng = np.random.default_rng(seed)
    given: Any = (asked, LOCATED, n, rng, subsets_of(q, precision))
    (found,) = together([controls.random_control(*given)])
    assert isinstance(found, Drops)
    return found


@pytest.mark.parametrize("q", [1, 2, 3, 5, 7])
def test_a_precision_that_is_never_reached_takes_all_draws(prompts: Prompts, q: int) -> None:
    """The same draws as without: all suppressed and each alone give the same figures."""
    found, exact = (random_drops(prompts, q, precision, 12) for precision in (1e-12, 0.0))
    assert found.n == exact.n == 12
    for name in ("full_drop", "full_std", "excess", "redundancy", "n_redundancy"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=1e-9), name
    if q == 1:
        assert math.isnan(found.partial_drop)
    elif q == 2:  # one pair is all there are
        assert found.partial_drop == pytest.approx(exact.partial_drop, rel=1e-9)
    else:
        # One random pair a draw beside the mean over all subsets of each.
        assert abs(found.partial_drop - exact.partial_drop) < found.partial_std


def test_draws_stop_where_the_means_are_precise_enough(prompts: Prompts) -> None:
    every = random_drops(prompts, 3, 1e-12, 40)
    half = scipy.stats.t.ppf(0.975, 39) * max(every.full_std, every.partial_std) / math.sqrt(40)
    few = random_drops(prompts, 3, min(0.99, 3 * half), 40)
    assert few.n < 40
    assert few.n in {5, 10, 20}
    wide = scipy.stats.t.ppf(0.975, few.n - 1) / math.sqrt(few.n)
    assert wide * few.full_std <= 3 * half
    assert wide * few.partial_std <= 3 * half
    # Within the intervals of both.
    assert abs(few.full_drop - every.full_drop) < 4 * half
    assert abs(few.partial_drop - every.partial_drop) < 4 * half
    assert dataclasses.astuple(few) == dataclasses.astuple(
        random_drops(prompts, 3, min(0.99, 3 * half), 40)
    )


@pytest.mark.parametrize("q", [1, 2, 4, 5])
def test_other_prompts_to_a_precision_that_is_never_reached_are_exact(
    prompts: Prompts, q: int
) -> None:
    asked = controls.Suppressed(prompts, [0, 1, 2], family(q))
    found, exact = together(
        [controls.elsewhere(asked, subsets_of(q, precision)) for precision in (1e-12, 0.0)]
    )
    assert isinstance(found, Drops)
    assert isinstance(exact, Drops)
    for one, other in zip(dataclasses.astuple(found), dataclasses.astuple(exact), strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12, nan_ok=True)


def test_other_prompts_are_asked_in_rounds_until_it_is_enough(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = controls.Suppressed(prompts, [0, 2], family(7))
    n_edits: list[int] = []
    real = prompts.with_objective

    def counted(some: Any, **options: Any) -> Any:
        n_edits.append(sum(len(one.edits) for one in some))
        return real(some, **options)

    monkeypatch.setattr(prompts, "with_objective", counted)
    together([controls.elsewhere(asked, subsets_of(7, 1e-12))])
    # Clean, all, seven alone, three pairs; then as many again, and what is left of eleven.
    sizes = [len(masks) for masks in subsets_of(7).rounds()]
    assert len(sizes) == 3
    assert n_edits == [sizes[0], *(b - a for a, b in itertools.pairwise(sizes))]
    n_edits.clear()
    (found,) = together([controls.elsewhere(asked, subsets_of(7, 0.999))])
    assert n_edits == [sizes[0]]
    every = []
    for b in (0, 2):
        masks = np.arange(128)
        p = prompts.probabilities(controls.subset_edits(asked.sets, masks), [b])[:, 0]
        every.append(drops(Lattice(7, masks, p)))
    expected = controls.average(every)
    assert isinstance(found, Drops)
    assert (found.full_drop, found.excess) == pytest.approx(
        (expected.full_drop, expected.excess), rel=1e-9
    )


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_precision_is_a_share(value: float) -> None:
    with pytest.raises(UserError, match=r"control_precision must be in \[0, 1\)"):
        FilterConfig(control_precision=value)
