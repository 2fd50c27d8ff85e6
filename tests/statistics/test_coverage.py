"""How often 95 % intervals hold the truth, and how often tests find a difference that is not there.

Every cell is a kind of values and a number of units. Intervals should cover between 0.93 and 0.97;
where none of the methods tried does, the cell stands in ``OUTSIDE`` with what it covers, here and
in docs/explanation/statistics.md. A coverage of R samples is known to sqrt(c (1 - c) / R); three of
these are allowed. Samples without an interval (all values equal) do not count, and their share is
checked.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dkn_engine.analysis.experiments.evolvability.overlap import chance, overlap
from dkn_engine.analysis.experiments.fact_check.detection import auroc, precision_recall_f1
from dkn_engine.statistics.intervals import Estimate, mean_estimate, wilson_share
from dkn_engine.statistics.jackknife import (
    LeftOut,
    bounded_estimate,
    difference_estimate,
    difference_interval,
    leave_one_out,
)
from dkn_engine.statistics.paired_tests import holm, paired_p_value

SIZES = (8, 10, 15, 23, 33, 50)
LOWEST, HIGHEST = 0.93, 0.97
ROOT = Path(__file__).parents[2]
Draw = Callable[[np.random.Generator, int], np.ndarray]


def error(coverage: float, repeats: int) -> float:
    """Three standard errors of a share of so many samples."""
    return 3 * math.sqrt(coverage * (1 - coverage) / repeats)


def covered(estimates: Iterator[Estimate], truth: float) -> tuple[float, int]:
    """The share of intervals that hold the truth, and the number of intervals."""
    given = [e for e in estimates if not e.reason]
    return float(np.mean([e.ci_low <= truth <= e.ci_high for e in given])), len(given)


def check(cell: tuple[object, ...], coverage: float, n_intervals: int) -> None:
    if cell in OUTSIDE:
        expected = OUTSIDE[cell]
        # What stands there was simulated, too, with as many samples.
        allowed = math.sqrt(2) * error(expected, n_intervals)
        assert coverage == pytest.approx(expected, abs=allowed), cell
    else:
        assert coverage >= LOWEST - error(LOWEST, n_intervals), (cell, coverage)
        assert coverage <= HIGHEST + error(HIGHEST, n_intervals), (cell, coverage)


def measured_drops() -> np.ndarray:
    """Full drops of the packaged demo facts: a long tail to the left, as real drops have."""
    with (ROOT / "benchmarks/results/demo_facts.csv").open(newline="") as file:
        values = [float(row["full_drop"] or "nan") for row in csv.DictReader(file)]
    return np.array([v for v in values if math.isfinite(v)])


DROPS = measured_drops()
THIRDS, OF_THIRDS = np.array([0, 1, 2, 3]) / 3, [0.1, 0.1, 0.3, 0.5]
HALVES, OF_HALVES = np.array([0, 0.5, 1]), [0.05, 0.25, 0.7]
SIGNS, OF_SIGNS = np.array([-1.0, 0, 1]), [0.05, 0.6, 0.35]
RARE = [0.02, 0.88, 0.1]
# Name: one sample, and the true mean.
MEANS: dict[str, tuple[Draw, float]] = {
    "Beta(2, 2)": (lambda r, n: r.beta(2, 2, n), 0.5),
    "Beta(0.5, 0.5)": (lambda r, n: r.beta(0.5, 0.5, n), 0.5),
    "Beta(0.5, 2)": (lambda r, n: r.beta(0.5, 2, n), 0.2),
    "exponential": (lambda r, n: r.exponential(size=n), 1.0),
    "1 - exponential": (lambda r, n: 1 - r.exponential(size=n), 0.0),
    "demo drops": (lambda r, n: r.choice(DROPS, n), float(DROPS.mean())),
    "normal": (lambda r, n: r.normal(size=n), 0.0),
    "t of 3": (lambda r, n: r.standard_t(3, n), 0.0),
    "tenths": (lambda r, n: r.binomial(10, 0.5, n) / 10, 0.5),
    "thirds": (lambda r, n: r.choice(THIRDS, n, p=OF_THIRDS), float(THIRDS @ OF_THIRDS)),
    "halves": (lambda r, n: r.choice(HALVES, n, p=OF_HALVES), float(HALVES @ OF_HALVES)),
    "signs": (lambda r, n: r.choice(SIGNS, n, p=OF_SIGNS), 0.3),
    "rare signs": (lambda r, n: r.choice(SIGNS, n, p=RARE), 0.08),
    "draws of 20": (lambda r, n: r.binomial(20, r.beta(0.3, 1.5, n)) / 20, 0.3 / 1.8),
}
# All but one of these cover more. Values heaped at both ends of their range have a steadier
# deviation than Student's t reckons with; of few values that are most often equal either none or
# all of the usual samples give an interval that holds the mean.
OUTSIDE: dict[tuple[object, ...], float] = {
    ("Beta(0.5, 0.5)", 8): 0.979,
    ("Beta(0.5, 0.5)", 10): 0.983,
    ("Beta(0.5, 0.5)", 15): 0.982,
    ("demo drops", 8): 0.982,
    ("demo drops", 10): 0.985,
    ("demo drops", 15): 0.983,
    ("thirds", 8): 0.997,
    ("halves", 8): 0.996,
    ("halves", 10): 0.996,
    ("halves", 15): 0.995,
    ("halves", 23): 0.990,
    ("halves", 33): 0.974,
    ("signs", 8): 0.985,
    ("signs", 10): 0.990,
    ("rare signs", 8): 0.999,
    ("rare signs", 10): 0.997,
    ("draws of 20", 23): 0.972,
    ("draws of 20", 33): 0.973,
    ("draws of 20", 50): 0.971,
    ("recall", 8): 0.990,
    ("f1", 8): 0.979,
    ("rho", 0.5, 8): 0.923,
    ("rho", 2.0, 8): 0.981,
    ("rho", 2.0, 10): 0.984,
    ("rho", 2.0, 15): 0.984,
    ("rho", 2.0, 23): 0.987,
    ("gap", 0.5, 0.5, 0.7, 8): 0.980,
    ("gap", 0.5, 0.5, 0.7, 10): 0.976,
    ("gap", 0.75, 0.75, 0.7, 8): 0.986,
    ("gap", 0.75, 0.75, 0.7, 10): 0.983,
}
# The share of samples with no interval, since all values are equal.
NONE = {("halves", 8): 0.057, ("rare signs", 8): 0.357, ("rare signs", 50): 0.002}


def of_means(name: str, n: int, repeats: int) -> tuple[float, int]:
    draw, truth = MEANS[name]
    rng = np.random.default_rng([n, *name.encode()])
    return covered((mean_estimate(draw(rng, n)) for _ in range(repeats)), truth)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", MEANS)
def test_intervals_of_means_cover(name: str, n: int) -> None:
    coverage, n_intervals = of_means(name, n, 10_000)
    check((name, n), coverage, n_intervals)
    none = NONE.get((name, n))
    if none is not None:
        assert 1 - n_intervals / 10_000 == pytest.approx(none, abs=2 * error(none, 10_000))


@pytest.mark.parametrize(("name", "n"), [("Beta(2, 2)", 10), ("exponential", 10), ("thirds", 15)])
def test_intervals_of_means_cover_in_short(name: str, n: int) -> None:
    """Percentile intervals of the bootstrap covered 0.88 and 0.87 of the first two."""
    check((name, n), *of_means(name, n, 3000))


def shares(n: int, truth: float) -> float:
    """How often Wilson's interval holds the truth: exact, from the binomial distribution."""
    estimates = [wilson_share(hits, n) for hits in range(n + 1)]
    holds = [e.ci_low <= truth <= e.ci_high for e in estimates]
    return float(stats.binom.pmf(np.arange(n + 1), n, truth) @ holds)


@pytest.mark.parametrize("n", SIZES)
def test_intervals_of_shares_cover_on_average_and_nowhere_below_what_is_known(n: int) -> None:
    """Hits are whole numbers, so coverage goes up and down with the true share."""
    truths = (np.arange(2000) + 0.5) / 2000
    coverage = np.array([shares(n, t) for t in truths])
    assert LOWEST <= coverage.mean() <= HIGHEST
    # The lowest lie beside a share of 1 / n hits; Brown, Cai and DasGupta (2001), figure 5.
    assert coverage.min() > 0.83
    within = coverage[(truths > 0.1) & (truths < 0.9)]
    assert within.min() > 0.88


def statements(
    rng: np.random.Generator, n: int, area: float, correlation: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, labels and facts: one true and one false statement of each of n facts."""
    shared = math.sqrt(abs(correlation)) * rng.normal(size=n)
    own = math.sqrt(1 - abs(correlation)) * rng.normal(size=(2, n))
    true = math.sqrt(2) * stats.norm.ppf(area) + shared + own[0]
    false = math.copysign(1, correlation) * shared + own[1]
    labels = np.repeat([True, False], n)
    return np.concatenate([true, false]), labels, np.tile(np.arange(n), 2)


def jackknifed(scores: np.ndarray, labels: np.ndarray, fact: np.ndarray) -> LeftOut:
    return leave_one_out(lambda weights: auroc(scores, labels, weights), fact)


def of_aurocs(n: int, area: float, correlation: float, repeats: int) -> tuple[float, int]:
    rng = np.random.default_rng([n, int(100 * area), int(10 + 10 * correlation)])
    estimates = (
        bounded_estimate(jackknifed(*statements(rng, n, area, correlation))) for _ in range(repeats)
    )
    return covered(estimates, area)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("area", [0.5, 0.75, 0.9, 0.95])
@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.4, 0.8])
def test_intervals_of_aurocs_cover(correlation: float, area: float, n: int) -> None:
    check(("auroc", correlation, area, n), *of_aurocs(n, area, correlation, 3000))


@pytest.mark.parametrize("area", [0.75, 0.95])
def test_intervals_of_aurocs_cover_in_short(area: float) -> None:
    """Percentile intervals of the bootstrap covered 0.79 of the second, 16 % had no width."""
    coverage, n_intervals = of_aurocs(10, area, 0.0, 1500)
    assert n_intervals == 1500
    check(("auroc", 0.0, area, 10), coverage, n_intervals)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("figure", ["precision", "recall", "f1"])
def test_intervals_of_what_is_called_true_cover(figure: str, n: int) -> None:
    """By a fixed threshold; the truth is that of very many facts."""
    rng = np.random.default_rng([n, len(figure)])
    hit, alarm = (float(stats.norm.sf(0.8 - shift)) for shift in (math.sqrt(2) * 0.95, 0))
    precision, recall = hit / (hit + alarm), hit
    f1 = 2 * hit / (hit + alarm + 1)
    truth = {"precision": precision, "recall": recall, "f1": f1}[figure]
    area = float(stats.norm.cdf(0.95))

    def one() -> Estimate:
        scores, labels, fact = statements(rng, n, area, 0.4)
        calls = scores > 0.8
        values = leave_one_out(lambda w: precision_recall_f1(calls, labels, w)[figure], fact)
        size = len(set(fact[calls])) if figure == "precision" else None
        return bounded_estimate(values, size=size)

    check((figure, n), *covered((one() for _ in range(4000)), truth))


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("slope", [0.0, 0.5, 2.0])
def test_intervals_of_rank_correlations_cover(slope: float, n: int) -> None:
    """Of a figure of n facts in three models with the models' sizes, as in complexity."""
    rng = np.random.default_rng([n, int(10 * slope)])
    size = np.arange(3)

    def rhos(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        kept = np.stack([values[row > 0].ravel() for row in weights])  # equally many of each
        return rank_correlations(np.tile(size, kept.shape[1] // len(size)), kept)

    def drawn(n_facts: int) -> np.ndarray:
        return rng.normal(size=(n_facts, 1)) + rng.normal(size=(n_facts, 3)) + slope * size

    truth = rhos(drawn(100_000), np.ones((1, 100_000)))[0]
    estimates = (
        bounded_estimate(leave_one_out(partial(rhos, drawn(n)), np.arange(n)), lowest=-1)
        for _ in range(1500)
    )
    check(("rho", slope, n), *covered(estimates, truth))


def rank_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's of x ``[m]`` with each row of y ``[R, m]``."""
    ranks = [stats.rankdata(values, axis=-1) for values in (x, y)]
    a, b = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    found: np.ndarray = (b @ a) / np.sqrt((a @ a) * (b * b).sum(axis=-1))
    return found


def test_rank_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    x, y = np.tile(np.arange(3), 4), rng.integers(0, 5, (6, 12))
    expected = [stats.spearmanr(x, row).statistic for row in y]
    np.testing.assert_allclose(rank_correlations(x, y), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [6, 8, 10])
def test_a_paired_test_is_exact_where_either_sign_is_as_likely(n: int) -> None:
    """Of all signs of given differences, each as likely: no more than 5 % give p < 0.05."""
    rng = np.random.default_rng(n)
    for values in (rng.normal(size=n), rng.exponential(size=n), rng.integers(0, 3, n)):
        every = list(itertools.product((1, -1), repeat=n))
        chosen = every if n < 10 else [every[i] for i in rng.choice(len(every), 300)]
        small = np.mean([paired_p_value(np.multiply(s, values)) <= 0.05 for s in chosen])
        assert small <= (0.05 if n < 10 else 0.05 + error(0.05, 300))


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 10, 23, 50])
@pytest.mark.parametrize("name", ["normal", "t of 3", "Beta(0.5, 0.5)", "tenths"])
def test_paired_tests_find_no_difference_in_95_percent(name: str, n: int) -> None:
    draw, truth = MEANS[name]
    rng = np.random.default_rng([n, *name.encode()])
    small = np.mean([paired_p_value(draw(rng, n) - truth) < 0.05 for _ in range(1500)])
    assert small <= 0.05 + error(0.05, 1500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "size"),
    [("exponential", 8, 0.086), ("exponential", 50, 0.064), ("draws of 20", 8, 0.117)],
)
def test_paired_tests_of_skewed_differences_find_more(name: str, n: int, size: float) -> None:
    """Their mean is 0, but none is as likely as its negative, which is what is tested."""
    draw, truth = MEANS[name]
    rng = np.random.default_rng([n, *name.encode()])
    small = np.mean([paired_p_value(draw(rng, n) - truth) < 0.05 for _ in range(1500)])
    assert small == pytest.approx(size, abs=math.sqrt(2) * error(size, 1500))


@pytest.mark.slow
def test_families_of_tests_find_nothing_in_95_percent() -> None:
    """Twelve figures of the same facts, which go together: one finding among them or more."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(1000):
        shared, own = rng.normal(size=(10, 1)), rng.normal(size=(10, 12))
        p = holm([paired_p_value(column) for column in (shared + own).T])
        found += bool((p < 0.05).any())
    assert found / 1000 <= 0.05 + error(0.05, 1000)


def gaps(
    n: int, areas: tuple[float, float], alike: float, repeats: int
) -> Iterator[tuple[LeftOut, LeftOut]]:
    """AUROCs of two scorers of the same statements, whose noise is alike to some degree."""
    rng = np.random.default_rng([n, int(100 * areas[0]), int(100 * areas[1]), int(10 * alike)])
    labels, fact = np.repeat([True, False], n), np.tile(np.arange(n), 2)
    for _ in range(repeats):
        shared, both = np.tile(rng.normal(size=n), 2), rng.normal(size=2 * n)
        scores = [
            math.sqrt(2) * stats.norm.ppf(area) * labels
            + math.sqrt(0.3) * shared
            + math.sqrt(0.7 * alike) * both
            + math.sqrt(0.7 * (1 - alike)) * rng.normal(size=2 * n)
            for area in areas
        ]
        first, second = (jackknifed(s, labels, fact) for s in scores)
        yield first, second


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 10, 23, 50])
@pytest.mark.parametrize("alike", [0.0, 0.7])
@pytest.mark.parametrize("area", [0.5, 0.75, 0.9])
def test_equal_aurocs_differ_in_5_percent_at_most(area: float, alike: float, n: int) -> None:
    p_values = [difference_estimate(*two)[1] for two in gaps(n, (area, area), alike, 1000)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.05 + error(0.05, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("alike", [0.0, 0.7])
@pytest.mark.parametrize("areas", [(0.5, 0.5), (0.75, 0.75), (0.9, 0.7), (0.95, 0.75)])
def test_intervals_of_differences_of_aurocs_cover(
    areas: tuple[float, float], alike: float, n: int
) -> None:
    estimates = (difference_interval(*two) for two in gaps(n, areas, alike, 1500))
    check(("gap", *areas, alike, n), *covered(estimates, areas[0] - areas[1]))


def test_equal_aurocs_seldom_differ() -> None:
    p_values = [difference_estimate(*two)[1] for two in gaps(10, (0.75, 0.75), 0.0, 300)]
    assert 0 < np.mean(np.array(p_values) < 0.05) <= 0.05 + error(0.05, 300)


def test_an_overlap_by_chance_is_a_finding_in_5_percent_at_most() -> None:
    """Exact, from the distribution of the overlap."""
    target = np.zeros((3, 20), dtype=bool)
    target[0, :5] = target[1, :9] = True
    drawn = [4, 6, 2]
    weights = chance(drawn, target.sum(1), [20] * 3)
    size = 0.0
    for hits in range(len(weights)):
        first, second = min(hits, 4), max(0, hits - 4)
        if second > 6:
            continue  # no more than ten can hit
        rows = [[0, i if i < first else 19 - i] for i in range(4)]
        rows += [[1, i if i < second else 19 - i] for i in range(6)]
        rows += [[2, 0], [2, 1]]
        found = overlap(np.array(rows, dtype=np.int32), target)
        assert found.observed == hits
        size += weights[hits] * (found.p_value < 0.05)
    assert 0 < size <= 0.05
