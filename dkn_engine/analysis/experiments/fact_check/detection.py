"""How well scores tell true from false: AUROC, thresholds, precision, recall and F1."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Bools = NDArray[np.bool_]


def auroc(scores: Reals, labels: Bools, weights: Reals) -> Reals:
    """Area under the ROC curve of weighted statements, ``[R]``; ties count half.

    Args:
        scores: ``[n]``, finite; higher is truer.
        labels: bool ``[n]``.
        weights: ``[R, n]``, 0 or more.

    Returns:
        NaN where one of the classes has no weight.
    """
    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.diff(rank[order], prepend=-1))
    true, false = (
        np.add.reduceat(weights[:, order] * of[order], starts, axis=1)
        if len(scores)
        else np.zeros((len(weights), 0))
        for of in (labels, ~labels)
    )
    below = np.cumsum(false, axis=1) - false / 2
    with np.errstate(invalid="ignore"):
        found: Reals = (true * below).sum(1) / (true.sum(1) * false.sum(1))
    return found


def precision_recall_f1(called: Bools, labels: Bools, weights: Reals) -> dict[str, Reals]:
    """``precision``, ``recall`` and ``f1`` of what is called true, ``[R]`` each; NaN for 0 / 0."""
    hits, calls, truths = (weights @ x for x in (called & labels, called, labels))
    with np.errstate(invalid="ignore"):
        return {
            "precision": hits / calls,
            "recall": hits / truths,
            "f1": 2 * hits / (calls + truths),
        }


def best_threshold(scores: Reals, labels: Bools) -> float:
    """The threshold above which calling statements true gives the best F1; the highest of equals.

    Thresholds lie halfway between neighbouring scores, or below them all (minus infinity).

    Returns:
        NaN without a true statement.
    """
    if not labels.any():
        return math.nan
    values, rank = np.unique(-scores, return_inverse=True)  # from the highest on
    calls = np.cumsum(np.bincount(rank))
    hits = np.cumsum(np.bincount(rank, weights=labels))
    best = int(np.argmax(2 * hits / (calls + labels.sum())))
    if best + 1 == len(values):
        return -math.inf
    return -float(values[best] + values[best + 1]) / 2


def cross_fitted(scores: Reals, labels: Bools, folds: NDArray[np.int64]) -> Reals:
    """For each statement the threshold of best F1 over the statements of all other folds, ``[n]``.

    The labels of a fold have no part in its threshold.
    """
    found = np.full(len(scores), math.nan)
    for fold in np.unique(folds):
        others = folds != fold
        found[~others] = best_threshold(scores[others], labels[others])
    return found
