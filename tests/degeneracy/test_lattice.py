"""The subset lattice: masks, drops and families against loops over subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dkn_engine.degeneracy.lattice import (
    Lattice,
    degenerate_family,
    drops,
    mask_of,
    members_of,
    subset_masks,
)

NAN = float("nan")


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def whole(q: int, probabilities: np.ndarray) -> Lattice:
    return Lattice(q, np.arange(1 << q, dtype=np.int64), np.asarray(probabilities, np.float64))


def random_lattice(q: int, seed: int) -> Lattice:
    return whole(q, random(seed).uniform(0.01, 1, 1 << q))


def falling_lattice(q: int, seed: int) -> Lattice:
    """Nothing suppressed is the most probable."""
    p = random(seed).uniform(0.01, 0.9, 1 << q)
    p[0] = 0.95
    return whole(q, p)


def independent(shares: list[float]) -> Lattice:
    """Each suppressed component multiplies the probability by its share, whatever the others."""
    p = [0.9 * math.prod(shares[i] for i in members_of(m)) for m in range(1 << len(shares))]
    return whole(len(shares), np.array(p))


# --- masks ---


@pytest.mark.parametrize("q", [0, 1, 2, 5, 12])
def test_all_subsets_up_to_the_limit(q: int) -> None:
    masks = subset_masks(q, 12, 4096, random())
    assert masks.dtype == np.int64
    assert masks.tolist() == list(range(1 << q))


def test_all_subsets_above_the_limit_where_the_sample_could_hold_them() -> None:
    assert subset_masks(6, 2, 64, random()).tolist() == list(range(64))


@pytest.mark.parametrize(
    ("q", "n_samples"), [(6, 0), (6, 30), (6, 63), (13, 50), (13, 4096), (40, 50), (62, 200)]
)
def test_a_sample_holds_what_figures_need(q: int, n_samples: int) -> None:
    masks = subset_masks(q, 5, n_samples, random(1))
    full = (1 << q) - 1
    fixed = {0, full, *(1 << i for i in range(q)), *(full ^ (1 << i) for i in range(q))}
    assert masks.dtype == np.int64
    assert (np.diff(masks) > 0).all()
    assert fixed <= set(masks.tolist())
    assert len(masks) == max(n_samples, len(fixed))
    assert masks[0] == 0
    assert masks[-1] == full


def test_a_sample_is_repeatable_and_depends_on_the_seed() -> None:
    one, again, other = (subset_masks(20, 12, 100, random(s)) for s in (1, 1, 2))
    assert one.tolist() == again.tolist()
    assert one.tolist() != other.tolist()


def test_a_sample_is_uniform_over_the_rest() -> None:
    """Of 64 masks 14 are fixed; each of the other 50 is drawn with the same frequency."""
    counts = np.zeros(64)
    n = 4000
    for seed in range(n):
        counts[subset_masks(6, 5, 24, random(seed))] += 1
    rest = counts[counts < n]
    assert len(rest) == 50
    # 10 of 50 a draw: a binomial of share 0.2; five standard deviations.
    assert np.abs(rest / n - 0.2).max() < 5 * math.sqrt(0.2 * 0.8 / n)


def test_masks_and_members_are_inverse() -> None:
    for mask in (0, 1, 6, 37, (1 << 62) - 1):
        assert mask_of(members_of(mask)) == mask
    assert members_of(0b1010) == (1, 3)


# --- lattice ---


def test_a_probability_that_was_not_sampled_is_nan() -> None:
    lattice = Lattice(3, np.array([0, 3, 7]), np.array([0.5, 0.4, 0.3]))
    assert [lattice.at(m) for m in (0, 3, 7)] == [0.5, 0.4, 0.3]
    assert all(math.isnan(lattice.at(m)) for m in (1, 4, 8))


@pytest.mark.parametrize("members", [(), (2,), (0, 3), (4, 1, 2), (0, 1, 2, 3, 4)])
def test_a_restricted_lattice_renumbers_its_members(members: tuple[int, ...]) -> None:
    lattice = random_lattice(5, seed=2)
    found = lattice.restrict(members)
    assert found.q == len(members)
    assert found.masks.tolist() == list(range(1 << len(members)))
    for mask in range(1 << len(members)):
        old = mask_of([members[bit] for bit in members_of(mask)])
        assert found.at(mask) == lattice.at(old)


def test_a_restricted_sample_keeps_what_was_sampled() -> None:
    lattice = Lattice(4, np.array([0, 2, 8, 10, 15]), np.array([0.9, 0.8, 0.7, 0.6, 0.5]))
    found = lattice.restrict([3, 1])
    assert found.masks.tolist() == [0, 1, 2, 3]
    assert found.probabilities.tolist() == [0.9, 0.7, 0.8, 0.6]


# --- drops ---


@pytest.mark.parametrize("q", [1, 2, 3, 6])
def test_drops_equal_loops_over_subsets(q: int) -> None:
    lattice = falling_lattice(q, seed=q)
    clean, full = lattice.at(0), (1 << q) - 1
    partial, n = 0.0, 0
    for size in range(1, q):
        for members in itertools.combinations(range(q), size):
            partial += (clean - lattice.at(mask_of(members))) / clean
            n += 1
    found = drops(lattice)
    if q == 1:
        assert math.isnan(found.partial_drop)
    else:
        assert found.partial_drop == pytest.approx(partial / n, rel=1e-12)
    assert found.full_drop == pytest.approx((clean - lattice.at(full)) / clean, rel=1e-12)
    alone = sum(math.log(clean / lattice.at(1 << i)) for i in range(q))
    expected = math.log(clean / lattice.at(full)) / alone
    assert found.redundancy == pytest.approx(expected, rel=1e-12)
    together = math.log(clean / lattice.at(full))
    assert found.excess == pytest.approx(together - alone, rel=1e-12, abs=1e-15)
    assert found.n_redundancy == 1


@pytest.mark.parametrize("shares", [[0.5], [0.9, 0.2], [0.8, 0.7, 0.99, 0.1]])
def test_independent_components_have_redundancy_one(shares: list[float]) -> None:
    assert drops(independent(shares)).redundancy == pytest.approx(1, rel=1e-9)
    assert drops(independent(shares)).excess == pytest.approx(0, abs=1e-9)


def test_components_that_cover_for_one_another_have_more_and_needed_ones_less() -> None:
    covering = whole(2, np.array([0.8, 0.79, 0.78, 0.01]))
    needed = whole(2, np.array([0.8, 0.02, 0.03, 0.01]))
    assert drops(covering).redundancy > 10
    assert drops(needed).redundancy < 0.7
    assert drops(covering).excess > 4
    assert drops(needed).excess < -2


@pytest.mark.parametrize(
    ("probabilities", "why"),
    [
        ([0.8, 0.5, 0.5, 0.0], "nothing is left, so the log-drop is infinite"),
        ([0.8, 0.0, 0.5, 0.1], "one alone takes everything"),
        ([0.8, 0.8, 0.8, 0.1], "single components change nothing"),
        ([0.8, 0.9, 0.85, 0.1], "single components raise it"),
        ([0.8, NAN, 0.5, 0.1], "one was not sampled"),
        ([0.8, 0.5, 0.5, NAN], "the whole family was not sampled"),
    ],
)
def test_redundancy_is_nan_where_it_says_nothing(probabilities: list[float], why: str) -> None:
    found = drops(whole(2, np.array(probabilities)))
    assert math.isnan(found.redundancy), why
    assert found.n_redundancy == 0
    # The difference is there as long as every logarithm is.
    clean, a, b, none = probabilities
    if all(p > 0 for p in probabilities):
        expected = math.log(clean / none) - math.log(clean / a) - math.log(clean / b)
        assert found.excess == pytest.approx(expected, rel=1e-12)
    else:
        assert math.isnan(found.excess)


@pytest.mark.parametrize("clean", [0.0, NAN])
def test_without_a_clean_probability_there_are_no_drops(clean: float) -> None:
    found = drops(whole(2, np.array([clean, 0.0, 0.0, 0.0])))
    assert all(map(math.isnan, (found.partial_drop, found.full_drop, found.redundancy)))
    assert degenerate_family(whole(2, np.array([clean, 0.0, 0.0, 0.0])), [1, 1], 0.0, 1.0) == ()


def test_no_components_have_no_drops() -> None:
    found = drops(whole(0, np.array([0.8])))
    assert all(map(math.isnan, (found.partial_drop, found.full_drop, found.redundancy)))


@pytest.mark.parametrize("q", [6, 9])
def test_a_sample_gives_the_exact_partial_drop_where_the_middle_is_constant(q: int) -> None:
    """One suppressed and all but one are held whole; only the sizes between are estimated."""
    size = np.array([m.bit_count() for m in range(1 << q)])
    p = np.where((size > 1) & (size < q - 1), 0.4, falling_lattice(q, 3).probabilities)
    masks = subset_masks(q, 5, 40, random(4))
    assert len(masks) < 1 << q
    sampled, exact = drops(Lattice(q, masks, p[masks])), drops(whole(q, p))
    assert sampled.partial_drop == pytest.approx(exact.partial_drop, rel=1e-12)
    assert sampled.full_drop == exact.full_drop
    assert sampled.redundancy == pytest.approx(exact.redundancy, rel=1e-12)


def test_the_partial_drop_of_samples_is_unbiased() -> None:
    lattice = random_lattice(6, seed=8)
    exact = drops(lattice).partial_drop
    found = []
    for seed in range(2000):
        masks = subset_masks(6, 5, 24, random(seed))
        found.append(drops(Lattice(6, masks, lattice.probabilities[masks])).partial_drop)
    error = np.std(found) / math.sqrt(len(found))
    assert error > 0
    assert abs(np.mean(found) - exact) < 4 * error


def test_a_restricted_sample_weighs_sizes_as_they_are() -> None:
    """All but one of three of many components are held in part: two of the three pairs here."""
    masks = np.array([0, 1, 2, 4, 3, 5, 7])
    p = np.array([0.8, 0.7, 0.7, 0.7, 0.2, 0.2, 0.1])
    lattice = Lattice(3, np.sort(masks), p[np.argsort(masks)])
    expected = (3 * (1 - 0.7 / 0.8) + 3 * (1 - 0.2 / 0.8)) / 6
    assert drops(lattice).partial_drop == pytest.approx(expected, rel=1e-12)


# --- families ---


def families(
    lattice: Lattice, persistence: list[float], min_alone: float, max_none: float
) -> list[tuple[int, ...]]:
    """Every degenerate family, by definition."""
    found = []
    for size in range(2, lattice.q + 1):
        for members in itertools.combinations(range(lattice.q), size):
            alone = [lattice.at(mask_of([j for j in members if j != i])) for i in members]
            none = lattice.at(mask_of(members))
            if all(p >= min_alone * lattice.at(0) for p in alone) and none <= max_none * min(alone):
                found.append(members)
    return found


def best(found: list[tuple[int, ...]], persistence: list[float]) -> set[tuple[int, ...]]:
    """The largest ones, of those the ones of greatest total persistence."""
    longest = max((len(f) for f in found), default=0)
    largest = [f for f in found if len(f) == longest]
    total = {f: math.fsum(persistence[i] for i in f) for f in largest}
    return {f for f in largest if total[f] == max(total.values())}


@pytest.mark.parametrize("q", [0, 1, 2, 3, 4, 5])
def test_families_equal_enumeration(q: int) -> None:
    sizes = set()
    for seed in range(60):
        lattice = random_lattice(q, seed)
        persistence = random(seed).uniform(0, 1, q).tolist()
        for min_alone, max_none in ((0.3, 0.8), (0.6, 0.5), (0.0, 1.0), (1.0, 0.9)):
            found = degenerate_family(lattice, persistence, min_alone, max_none)
            expected = best(families(lattice, persistence, min_alone, max_none), persistence)
            assert found in (expected or {()})
            sizes.add(len(found))
    # The cases are of all kinds: none, pairs and more.
    assert sizes == {0, *range(2, q + 1)}


def test_equal_sizes_go_to_the_greater_persistence_then_to_the_first() -> None:
    """Components 0 and 1, or 2 and 3, cover for one another."""
    p = [0.8 if m & 3 != 3 and m & 12 != 12 else 0.01 for m in range(16)]
    lattice = whole(4, np.array(p))
    assert families(lattice, [], 0.7, 0.5) == [(0, 1), (2, 3)]
    assert degenerate_family(lattice, [4, 3, 5, 3], 0.7, 0.5) == (2, 3)
    assert degenerate_family(lattice, [5, 3, 4, 3], 0.7, 0.5) == (0, 1)
    # 0.1 + 0.7 and 0.7 + 0.1 are one number; their order in the sum must not decide.
    assert degenerate_family(lattice, [0.7, 0.1, 0.7, 0.1], 0.7, 0.5) == (0, 1)


def test_a_tie_of_totals_is_not_broken_by_rounding() -> None:
    """(0.1 + 0.2) + 0.3 and (0.3 + 0.2) + 0.1 differ in the last bit."""
    both = (mask_of([0, 1, 2]), mask_of([3, 4, 5]))
    p = [0.01 if any(m & b == b for b in both) else 0.8 for m in range(64)]
    found = degenerate_family(whole(6, np.array(p)), [0.3, 0.2, 0.1, 0.1, 0.2, 0.3], 0.7, 0.5)
    assert found == (0, 1, 2)


def test_thresholds_are_inclusive() -> None:
    lattice = whole(2, np.array([0.8, 0.4, 0.4, 0.2]))
    assert degenerate_family(lattice, [1, 1], 0.5, 0.5) == (0, 1)
    assert degenerate_family(lattice, [1, 1], 0.51, 0.5) == ()
    assert degenerate_family(lattice, [1, 1], 0.5, 0.49) == ()


def test_independent_components_never_pass_where_the_thresholds_are_equal() -> None:
    for seed in range(50):
        shares = random(seed).uniform(0.01, 0.99, 4).tolist()
        # 0.7 is the default of both; the margin is for rounding at equality.
        assert degenerate_family(independent(shares), [1] * 4, 0.7, 0.7 - 1e-9) == ()


def test_families_that_were_not_sampled_whole_are_not_judged() -> None:
    p = [0.01 if m & 3 == 3 else 0.8 for m in range(8)]
    without_pair = [m for m in range(8) if m != 3]
    lattice = Lattice(3, np.array(without_pair), np.array(p)[without_pair])
    assert degenerate_family(whole(3, np.array(p)), [1, 1, 1], 0.7, 0.5) == (0, 1)
    assert degenerate_family(lattice, [1, 1, 1], 0.7, 0.5) == ()
