"""The family found by asking for few subsets is that of the whole lattice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dkn_engine.degeneracy.family_search import FamilySearch
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops, subset_masks

NAN = float("nan")
Random = np.random.Generator


def independent(q: int, rng: Random) -> np.ndarray:
    """Members that each take their share, and a little noise."""
    keeps = rng.uniform(0.5, 1.05, q)
    member = np.arange(1 << q)[:, None] >> np.arange(q) & 1
    p: np.ndarray = 0.8 * (keeps**member).prod(1) * rng.uniform(0.97, 1.03, 1 << q)
    return p


def covering(q: int, rng: Random) -> np.ndarray:
    """All keep most of it until few are left."""
    n_off = np.array([m.bit_count() for m in range(1 << q)])
    enough = rng.integers(1, q + 1)
    return np.where(n_off < enough, 0.8, 0.1) * rng.uniform(0.9, 1.1, 1 << q)


def anything(q: int, rng: Random) -> np.ndarray:
    return rng.uniform(0, 1, 1 << q)


def undefined(q: int, rng: Random) -> np.ndarray:
    p = covering(q, rng)
    p[rng.random(1 << q) < 0.1] = NAN
    p[rng.random(1 << q) < 0.1] = 0.0
    p[0] = rng.choice([0.8, 0.0, NAN])
    return p


def searched(
    lattice: Lattice, min_alone: float, max_none: float, *, any_family: bool = False
) -> tuple[FamilySearch, int]:
    """The search at its end, and its rounds; every mask is asked for once."""
    p = dict(zip(lattice.masks.tolist(), lattice.probabilities.tolist(), strict=True))
    search = FamilySearch(lattice.q, lattice.masks, min_alone, max_none, any_family=any_family)
    asked: list[int] = []
    rounds = 0
    while search.wanted:
        rounds += 1
        asked += search.wanted
        search.tell({m: p[m] for m in search.wanted})
    assert len(set(asked)) == len(asked)
    assert search.lattice.masks.tolist() == sorted(asked)
    return search, rounds


@pytest.mark.parametrize("made", [independent, covering, anything, undefined])
@pytest.mark.parametrize("q", [1, 2, 3, 5, 8])
def test_few_subsets_tell_the_family(made: Callable[[int, Random], np.ndarray], q: int) -> None:
    rng = np.random.default_rng(q)
    families = set()
    for _ in range(60):
        lattice = Lattice(q, np.arange(1 << q), made(q, rng))
        persistence = rng.choice([0.5, 1.0], q).tolist()
        rule = rng.uniform(0, 0.9), rng.uniform(0.3, 1)
        search, _ = searched(lattice, *rule)
        expected = degenerate_family(lattice, persistence, *rule)
        assert degenerate_family(search.lattice, persistence, *rule) == expected
        # What is read off it is there, too, of the family or of all.
        for members in (expected, range(q)):
            ours, whole = (drops(one.restrict(members)) for one in (search.lattice, lattice))
            assert ours.excess == pytest.approx(whole.excess, abs=0, nan_ok=True)
        assert search.passes == bool(expected)
        some, _ = searched(lattice, *rule, any_family=True)
        assert some.passes == bool(expected)
        assert len(some.lattice.masks) <= len(search.lattice.masks)
        families.add(len(expected))
    assert q < 2 or made is undefined or len(families) > 1


def test_a_sample_of_the_subsets_is_not_left() -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        masks = subset_masks(9, 3, 120, np.random.default_rng(seed))
        lattice = Lattice(9, masks, covering(9, rng)[masks])
        search, _ = searched(lattice, 0.5, 0.7)
        assert np.isin(search.lattice.masks, masks).all()
        expected = degenerate_family(lattice, [1.0] * 9, 0.5, 0.7)
        assert degenerate_family(search.lattice, [1.0] * 9, 0.5, 0.7) == expected


def test_members_that_are_needed_cost_a_third_of_the_subsets() -> None:
    """Where no two cover for one another: all subsets of two or more fail."""
    q = 8
    n_off = np.array([m.bit_count() for m in range(1 << q)])
    search, rounds = searched(Lattice(q, np.arange(1 << q), 0.8 * 0.5**n_off), 0.7, 0.7)
    assert len(search.lattice.masks) < (1 << q) / 3 + q
    assert rounds == 2
