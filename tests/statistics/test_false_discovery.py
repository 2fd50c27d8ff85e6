"""False discovery rates against the procedure as it was published, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dkn_engine.statistics.false_discovery import (
    BeyondChance,
    benjamini_hochberg,
    fewest_at_the_floor,
)

NAN = math.nan


def step_up(p: list[float], alpha: float) -> set[int]:
    """The findings: the k smallest, k the greatest with p_(k) <= alpha k / n."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    k = max((r for r, i in enumerate(order, 1) if p[i] <= alpha * r / len(p)), default=0)
    return set(order[:k])


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_findings_are_those_of_the_step_up_procedure(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(50):
        p = np.where(rng.random(n) < 0.3, rng.random(n) / 100, rng.random(n))
        p = np.round(p, 2) if rng.random() < 0.5 else p  # also ties
        adjusted = benjamini_hochberg(p)
        assert (adjusted >= p).all()
        for alpha in (0.01, 0.05, 0.2, 1.0):
            # An adjusted value that rounds to alpha itself is the only one that may differ.
            clear = np.abs(adjusted - alpha) > 1e-12
            expected = np.isin(np.arange(n), list(step_up(p.tolist(), alpha)))
            np.testing.assert_array_equal((adjusted <= alpha)[clear], expected[clear])


def test_nan_does_not_count() -> None:
    found = benjamini_hochberg([0.01, NAN, 0.5, NAN])
    np.testing.assert_allclose(found, [0.02, NAN, 0.5, NAN])
    assert np.isnan(benjamini_hochberg([NAN])).all()
    assert benjamini_hochberg([]).shape == (0,)


def test_no_more_than_the_rate_are_false() -> None:
    """Of 30 p-values 10 are of effects; the mean share of false findings is 5 % times 20 / 30."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(2000):
        p = rng.random(30)
        p[:10] **= 8
        findings = benjamini_hochberg(p) <= 0.05
        shares.append(findings[10:].sum() / max(1, findings.sum()))
    deviation = np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(0.05 * 20 / 30, abs=4 * deviation)


@pytest.mark.parametrize(
    ("n", "draws", "needed"), [(1, 19, 1), (33, 19, 33), (33, 8, 74), (33, 99, 7), (20, 399, 1)]
)
def test_few_draws_need_many_findings(n: int, draws: int, needed: int) -> None:
    assert fewest_at_the_floor(n, draws) == needed
    floor = 1 / (1 + draws)
    for k in range(1, n + 1):
        findings = (benjamini_hochberg([floor] * k + [1.0] * (n - k)) <= 0.05 + 1e-12).sum()
        assert findings == (k if k >= needed else 0)


def test_beyond_chance_by_hand() -> None:
    found = BeyondChance.of(
        [True, True, False, False, True, False],
        draws=[99] * 6,
        passing=[0, 33, 0, 99, 0, 66],
        p_values=[0.01, 0.3, 0.02, 1.0, 0.01, 0.9],
    )
    assert (found.n, found.draws, found.found) == (6, 99, 3)
    assert found.expected == pytest.approx(2)
    assert found.beyond.mean == pytest.approx(1 / 6)
    # 0.01 of six, twice; the third of 0.02 is none, since it found nothing.
    assert (found.significant, found.needed, found.can_be_told) == (2, 2, True)
    few = BeyondChance.of([True] * 6, [8] * 6, [0] * 6, [1 / 9] * 6)
    assert (few.significant, few.can_be_told) == (0, False)


def test_nothing_is_beyond_chance_of_nothing() -> None:
    found = BeyondChance.of([], [], [], [])
    assert (found.n, found.found, found.expected, found.significant) == (0, 0, 0.0, 0)
    assert math.isnan(found.beyond.mean)
