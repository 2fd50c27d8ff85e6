"""Scores of located neurons and of groups of them against planted groups.

Everything is told by labels: of each neuron the planted group that it is in, 0 and up, or -1 for
none. NaN where there is nothing to judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
PURE = 0.9


def purity(labels: Labels) -> float:
    """Share of a group's neurons that are in one planted group, the one of the most; ``[n]``."""
    return _most(labels)[1]


def _most(labels: Labels) -> tuple[int, float]:
    """The planted group of the most neurons (the first of equals), and their share; -1 for none."""
    inside = labels[labels >= 0]
    if not len(labels):
        return -1, math.nan
    if not len(inside):
        return -1, 0.0
    counts = np.bincount(inside)
    way = int(np.argmax(counts))
    return way, float(counts[way] / len(labels))


def matched(groups: Sequence[Labels]) -> list[int]:
    """The planted group that each group stands for: at a purity of ``PURE``, else -1."""
    return [way if share >= PURE else -1 for way, share in map(_most, groups)]


def group_precision(groups: Sequence[Labels]) -> float:
    """Share of found groups that stand for a planted one."""
    return float(np.mean(np.array(matched(groups)) >= 0)) if groups else math.nan


def group_recall(groups: Sequence[Labels], ways: int) -> float:
    """Share of planted groups that a found group stands for."""
    return len(set(matched(groups)) - {-1}) / ways


def is_exact(groups: Sequence[Labels], ways: int) -> bool:
    """Whether there is one group for each planted one, and none beside them."""
    return sorted(matched(groups)) == list(range(ways))


def mean_purity(groups: Sequence[Labels]) -> float:
    """Mean over groups."""
    return float(np.mean([purity(group) for group in groups])) if groups else math.nan


def coverage(groups: Sequence[Labels], size: int) -> float:
    """Share of all planted neurons, ``size``, that are in a group that stands for theirs."""
    ways = zip(groups, matched(groups), strict=True)
    return sum(int((group == way).sum()) for group, way in ways if way >= 0) / size


def neuron_precision(labels: Labels) -> float:
    """Share of located neurons that are in any planted group."""
    return float(np.mean(labels >= 0)) if len(labels) else math.nan


def neuron_recall(labels: Labels, size: int) -> float:
    """Share of all planted neurons, ``size``, that are located."""
    return int((labels >= 0).sum()) / size
