"""Intervals of means and shares against scipy, published values and solved equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from dkn_engine.statistics.intervals import (
    ALL_EQUAL,
    NOT_DEFINED,
    TOO_FEW,
    Estimate,
    mean_estimate,
    mean_interval,
    wilson_interval,
    wilson_share,
)

NAN = math.nan


def students(x: np.ndarray) -> tuple[float, float]:
    interval = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def halls(x: np.ndarray) -> tuple[float, float]:
    """Means at which Hall's transformation of the t statistic is at the quantiles of t."""
    n, error, skewness = len(x), stats.sem(x), stats.skew(x)
    a, root = skewness / 3, math.sqrt(n)

    def transformed(mean: float) -> float:
        t = (x.mean() - mean) / error
        return float(t + a * t**2 / root + a**2 * t**3 / (3 * n) + skewness / (6 * root))

    quantile = stats.t.ppf(0.975, n - 1)
    far = 1000 * error
    low, high = (
        optimize.brentq(
            lambda m, q=q: transformed(m) - q, x.mean() - far, x.mean() + far, xtol=1e-14
        )
        for q in (quantile, -quantile)
    )
    return low, high


@pytest.mark.parametrize("n", [6, 7, 10, 23, 400])
@pytest.mark.parametrize("kind", ["exponential", "left", "tied", "normal", "far"])
def test_the_interval_of_a_mean_is_the_wider_of_students_and_halls(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    x = {
        "exponential": rng.exponential(size=n),
        "left": 1 - rng.gamma(0.5, size=n),
        "tied": np.where(np.arange(n) < n - 1, 1.0, 0.25),
        "normal": rng.normal(size=n),
        "far": 1e6 + rng.exponential(size=n),
    }[kind]
    (t_low, t_high), (h_low, h_high) = students(x), halls(x)
    low, high = mean_interval(x)
    scale = high - low
    assert low == pytest.approx(min(t_low, h_low), abs=1e-7 * scale)
    assert high == pytest.approx(max(t_high, h_high), abs=1e-7 * scale)


def test_the_interval_of_symmetric_values_is_students() -> None:
    x = np.array([-4.0, -2.5, -1.0, -0.5, 0.5, 1.0, 2.5, 4.0])
    assert mean_interval(x) == pytest.approx(students(x), rel=1e-12)
    assert mean_interval(x + 3) == pytest.approx(students(x + 3), rel=1e-12)


@pytest.mark.parametrize("unit", [1e-150, -1.0, 1e-3, 1e150])
def test_the_interval_of_a_mean_has_no_unit_of_its_own(unit: float) -> None:
    x = np.random.default_rng(0).exponential(size=12)
    expected = np.sort(np.multiply(mean_interval(x), unit))
    np.testing.assert_allclose(mean_interval(unit * x), expected, rtol=1e-9)


def test_estimates_leave_out_what_is_not_finite() -> None:
    x = np.random.default_rng(1).normal(3.0, 2.0, size=40)
    found = mean_estimate([*x, NAN, math.inf, -math.inf])
    assert found == mean_estimate(x)
    assert found == Estimate(found.mean, *mean_interval(x), 40, float(np.median(x)))
    assert found.mean == pytest.approx(x.mean(), rel=1e-15)


@pytest.mark.parametrize("values", [[], [NAN], [NAN, math.inf, -math.inf]])
def test_the_mean_of_nothing_is_nan(values: list[float]) -> None:
    found = mean_estimate(values)
    assert math.isnan(found.mean)
    assert (found.n, found.reason) == (0, NOT_DEFINED)


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_a_mean_of_fewer_than_six_values_has_no_interval(n: int) -> None:
    values = [0.25, 0.75, 0.5, 0.1, 0.3, 0.2][:n]
    found = mean_estimate([*values, NAN])
    assert found.n == n
    assert found.mean == pytest.approx(np.mean(values))
    assert found.median == pytest.approx(np.median(values))
    assert math.isnan(found.ci_low) == math.isnan(found.ci_high) == (n < 6)
    assert found.reason == (TOO_FEW if n < 6 else "")
    # A share is counted: Wilson's interval holds for any number.
    assert wilson_share(1, n).ci_low > 0


@pytest.mark.parametrize("value", [0.0, 0.97, 0.1 + 0.2, -1e9])
def test_equal_values_have_no_interval_and_the_reason(value: float) -> None:
    found = mean_estimate([value] * 9 + [value * (1 + 2e-16)])
    assert found.mean == pytest.approx(value)
    assert (found.n, found.reason) == (10, ALL_EQUAL)
    assert math.isnan(found.ci_low)
    assert math.isnan(found.ci_high)
    assert found.bounds == (found.mean, found.mean)
    few, six = mean_estimate([value] * 5), mean_estimate(value + np.arange(6.0))
    assert all(math.isnan(end) for end in few.bounds)
    assert six.bounds == (six.ci_low, six.ci_high)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3; the ends by its formula.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval_agrees_with_published_values(
    hits: int, n: int, low: float, high: float
) -> None:
    share = wilson_share(hits, n)
    assert share.mean == hits / n
    assert (share.ci_low, share.ci_high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 10, 50, 3000])
def test_wilson_interval_is_scipys(n: int) -> None:
    for hits in {0, 1, n // 3, n // 2, n}:
        found = wilson_share(hits, n)
        expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (found.ci_low, found.ci_high) == pytest.approx(tuple(expected), abs=1e-14)
    assert (wilson_share(0, n).ci_low, wilson_share(n, n).ci_high) == (0, 1)


def test_wilson_interval_of_an_effective_size_solves_its_equation() -> None:
    for share, size in ((0.3, 7.25), (0.98, 141.4), (0.5, 2.5)):
        for end in wilson_interval(share, size):
            deviation = abs(share - end) / math.sqrt(end * (1 - end) / size)
            assert deviation == pytest.approx(stats.norm.ppf(0.975), rel=1e-9)


def test_wilson_refuses_more_hits_than_trials() -> None:
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson_share(3, 2)
    nothing = wilson_share(0, 0)
    assert (nothing.n, nothing.reason) == (0, NOT_DEFINED)
