"""Telling true from false by scores: against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from dkn_engine.analysis.experiments.fact_check.detection import (
    auroc,
    best_threshold,
    cross_fitted,
    precision_recall_f1,
)


def drawn(n: int, seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels of both kinds."""
    random = np.random.default_rng(seed)
    labels = random.random(n) < 0.5
    labels[:2] = True, False
    scores = random.standard_normal(n) + labels
    return (scores.round() if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("n", [2, 3, 17, 400])
def test_auroc_is_that_of_scikit_learn_under_any_weights(n: int, ties: bool) -> None:
    scores, labels = drawn(n, seed=n, ties=ties)
    weights = np.random.default_rng(1).integers(0, 4, (6, n)).astype(float)
    weights[0] = 1
    weights[:, :2] = 1  # both classes
    expected = [metrics.roc_auc_score(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(auroc(scores, labels, weights), expected, rtol=1e-12)


def test_auroc_of_one_class_or_of_nothing_is_not_defined() -> None:
    scores, labels = drawn(6, seed=0)
    assert np.isnan(auroc(scores, np.ones(6, dtype=bool), np.ones((1, 6)))).all()
    assert np.isnan(auroc(scores, labels, labels[None].astype(float))).all()
    nothing = np.empty(0)
    assert np.isnan(auroc(nothing, nothing.astype(bool), np.empty((1, 0)))).all()


def test_auroc_of_equal_scores_is_a_half() -> None:
    assert auroc(np.zeros(4), np.array([True, False, True, False]), np.ones((1, 4))) == [0.5]


@pytest.mark.parametrize("seed", range(5))
def test_precision_recall_and_f1_are_those_of_scikit_learn(seed: int) -> None:
    scores, labels = drawn(40, seed)
    called = scores > 0.3
    weights = np.random.default_rng(seed).integers(0, 3, (4, 40)).astype(float)
    found = precision_recall_f1(called, labels, weights)
    for r, w in enumerate(weights):
        of = {"y_true": labels, "y_pred": called, "sample_weight": w}
        assert found["precision"][r] == pytest.approx(metrics.precision_score(**of))
        assert found["recall"][r] == pytest.approx(metrics.recall_score(**of))
        assert found["f1"][r] == pytest.approx(metrics.f1_score(**of))


def test_calling_nothing_true_has_no_precision() -> None:
    labels = np.array([True, False])
    found = precision_recall_f1(np.zeros(2, dtype=bool), labels, np.ones((1, 2)))
    assert math.isnan(found["precision"][0])
    assert found["recall"] == found["f1"] == [0.0]


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("seed", range(8))
def test_the_best_threshold_has_the_best_f1_of_all(seed: int, ties: bool) -> None:
    scores, labels = drawn(15, seed, ties=ties)
    found = best_threshold(scores, labels)
    every = [-math.inf, *scores]
    best = max(metrics.f1_score(labels, scores > t, zero_division=0) for t in every)
    assert metrics.f1_score(labels, scores > found) == pytest.approx(best)
    assert found not in scores  # halfway between two
    higher = [t for t in every if t > found]
    assert all(metrics.f1_score(labels, scores > t, zero_division=0) < best for t in higher)


def test_thresholds_by_hand() -> None:
    scores, labels = np.array([1.0, 2.0, 4.0, 8.0]), np.array([False, False, True, True])
    assert best_threshold(scores, labels) == 3.0
    assert best_threshold(scores, ~labels) == -math.inf  # worse than chance: call all of them true
    assert math.isnan(best_threshold(scores, np.zeros(4, dtype=bool)))
    assert math.isnan(best_threshold(np.empty(0), np.empty(0, dtype=bool)))


@pytest.mark.parametrize("fold", range(4))
def test_labels_and_scores_of_a_fold_have_no_part_in_its_threshold(fold: int) -> None:
    scores, labels = drawn(60, seed=3)
    folds = np.random.default_rng(0).integers(0, 4, 60)
    mine = folds == fold
    before = cross_fitted(scores, labels, folds)
    flipped = np.where(mine, ~labels, labels)
    other = np.where(mine, -10 * scores, scores)
    np.testing.assert_array_equal(cross_fitted(scores, flipped, folds)[mine], before[mine])
    np.testing.assert_array_equal(cross_fitted(other, labels, folds)[mine], before[mine])
    assert before[mine][0] == best_threshold(scores[~mine], labels[~mine])
    # In those of the others it has.
    assert not np.array_equal(cross_fitted(scores, flipped, folds)[~mine], before[~mine])
