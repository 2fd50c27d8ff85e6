"""Intervals of statistics without one unit at a time, against loops and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dkn_engine.analysis.experiments.fact_check.detection import auroc
from dkn_engine.statistics.intervals import NOT_DEFINED, TOO_FEW, mean_estimate, wilson_interval
from dkn_engine.statistics.jackknife import (
    NOT_DEFINED_WITHOUT,
    UNMOVED,
    LeftOut,
    bounded_estimate,
    difference_estimate,
    leave_one_out,
)
from dkn_engine.statistics.paired_tests import paired_p_value

NAN = math.nan


def mean_of(values: np.ndarray) -> LeftOut:
    return leave_one_out(lambda w: (w @ values) / w.sum(1), np.arange(len(values)))


def auroc_of(scores: np.ndarray, labels: np.ndarray, unit: np.ndarray, **limit: int) -> LeftOut:
    return leave_one_out(lambda w: auroc(scores, labels, w), unit, **limit)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 22])
def test_each_unit_is_left_out_with_all_it_has(at_once: int) -> None:
    """AUROC without a fact, whose statements are not all neighbours, is scikit-learn's."""
    rng = np.random.default_rng(0)
    unit = np.concatenate([np.arange(9), rng.integers(9, size=30)])
    labels = np.tile([True, False], 20)[:39]
    scores = (rng.normal(size=39) + labels).round(1)
    found = auroc_of(scores, labels, unit, at_once=at_once)
    assert found.value == pytest.approx(metrics.roc_auc_score(labels, scores))
    expected = [metrics.roc_auc_score(labels[unit != u], scores[unit != u]) for u in range(9)]
    np.testing.assert_allclose(found.without, expected, rtol=1e-12)
    assert found.n == 9


def test_many_units_are_left_out_in_groups_with_nearly_the_same_interval() -> None:
    x = np.random.default_rng(1).beta(2, 5, size=3500)
    grouped = mean_of(x)
    assert (grouped.n, len(grouped.without)) == (3500, 1000)
    one = bounded_estimate(grouped)
    half = 1.96 * x.std() / math.sqrt(len(x))
    # A variance of 1,000 groups is off by sqrt(2 / 1000) = 4.5 %, so a width by half as much; five
    # times that.
    assert one.ci_high - one.ci_low == pytest.approx(2 * half, rel=0.12)
    assert one.n == 3500


@pytest.mark.parametrize("n", [8, 10, 33])
def test_the_interval_of_a_mean_between_bounds_is_wilsons_of_its_effective_size(n: int) -> None:
    """The jackknife's variance of a mean is the squared standard error."""
    x = np.random.default_rng(n).beta(0.5, 1, size=n)
    size = x.mean() * (1 - x.mean()) / stats.sem(x) ** 2
    low, high = wilson_interval(float(x.mean()), float(size))
    found = bounded_estimate(mean_of(x))
    assert found.n == n
    assert (found.mean, found.ci_low, found.ci_high) == pytest.approx((x.mean(), low, high))
    wide = bounded_estimate(mean_of(4 * x - 3), lowest=-3, highest=1)
    assert (wide.ci_low, wide.ci_high) == pytest.approx((4 * low - 3, 4 * high - 3))


@pytest.mark.parametrize("n", [6, 10, 33])
def test_an_auroc_of_1_or_0_has_wilsons_interval_of_the_facts(n: int) -> None:
    scores = np.arange(2.0 * n)
    labels, unit = scores >= n, np.tile(np.arange(n), 2)
    low, high = stats.binomtest(n, n).proportion_ci(0.95, method="wilson")
    perfect = bounded_estimate(auroc_of(scores, labels, unit))
    assert (perfect.mean, perfect.ci_low, perfect.ci_high) == pytest.approx((1, low, high))
    worst = bounded_estimate(auroc_of(-scores, labels, unit))
    assert (worst.mean, worst.ci_low, worst.ci_high) == pytest.approx((0, 1 - high, 1 - low))
    assert bounded_estimate(auroc_of(scores, labels, unit), size=3).ci_low < low


def test_nearly_perfect_claims_no_more_than_perfect() -> None:
    scores = np.arange(40.0)
    labels, unit = scores >= 20, np.tile(np.arange(20), 2)
    swapped = scores.copy()
    swapped[[19, 20]] = swapped[[20, 19]]
    perfect, nearly = (bounded_estimate(auroc_of(s, labels, unit)) for s in (scores, swapped))
    assert nearly.mean == pytest.approx(1 - 1 / 400)
    assert nearly.ci_low <= perfect.ci_low
    assert nearly.mean < nearly.ci_high < 1


def test_where_there_is_no_interval_the_reason_is_said() -> None:
    ones = np.ones(8)
    for values, reason in (
        (LeftOut(NAN, ones, 8), NOT_DEFINED),
        (LeftOut(0.5, ones[:5], 5), TOO_FEW),
        (LeftOut(0.5, np.array([NAN, *ones]), 9), NOT_DEFINED_WITHOUT),
        (LeftOut(0.5, ones / 2 + 1e-16, 8), UNMOVED),
    ):
        found = bounded_estimate(values)
        assert found.reason == reason
        assert math.isnan(found.ci_low)
        assert math.isnan(found.ci_high)
    nothing = leave_one_out(lambda w: np.full(len(w), NAN), np.empty(0, dtype=int))
    assert (bounded_estimate(nothing).n, bounded_estimate(nothing).reason) == (0, NOT_DEFINED)


@pytest.mark.parametrize("n", [6, 10, 40])
def test_a_difference_of_means_is_that_of_paired_values(n: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.exponential(size=n), rng.exponential(size=n)
    found, p = difference_estimate(mean_of(first), mean_of(second), seed=4)
    expected = mean_estimate(first - second)
    assert found.mean == pytest.approx(expected.mean)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.ci_low, expected.ci_high))
    assert p == pytest.approx(paired_p_value(first - second, seed=4))


def test_a_difference_of_aurocs_has_the_width_of_its_jackknife() -> None:
    """Against the variance that scikit-learn's AUROCs without each fact give."""
    rng = np.random.default_rng(5)
    labels, unit = np.tile([True, False], 300), np.repeat(np.arange(300), 2)
    scores = [rng.normal(size=600) + shift * labels for shift in (1.5, 0.5)]
    found, p = difference_estimate(*(auroc_of(s, labels, unit) for s in scores))
    gaps = [
        metrics.roc_auc_score(labels[unit != u], scores[0][unit != u])
        - metrics.roc_auc_score(labels[unit != u], scores[1][unit != u])
        for u in range(300)
    ]
    half = 1.968 * math.sqrt(299 * np.var(gaps))
    assert found.mean - found.ci_low == pytest.approx(half, rel=0.02)  # no skewness to speak of
    assert found.ci_high - found.mean == pytest.approx(half, rel=0.02)
    assert p < 0.001


def test_no_difference_is_no_finding_and_few_units_are_no_test() -> None:
    x = mean_of(np.random.default_rng(6).random(8))
    same, p = difference_estimate(x, x)
    assert (same.mean, p) == (0, 1)
    assert same.reason
    # Equal but for rounding.
    other = LeftOut(x.value + 1e-16, x.without + 1e-16 * np.arange(8), 8)
    assert difference_estimate(other, x)[1] == 1
    few = mean_of(np.random.default_rng(7).random(5))
    estimate, p = difference_estimate(few, few)
    assert math.isnan(p)
    assert estimate.reason == TOO_FEW
