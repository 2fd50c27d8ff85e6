"""The H0 merge tree of a Vietoris-Rips filtration, its bars and its components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine import _native


@dataclass(frozen=True, slots=True, eq=False)
class MergeTree:
    """How points merge as the radius grows: a forest with one tree a connected component.

    Nodes ``0 ... n - 1`` are the points; node ``n + k`` is merge ``k``, as in scipy's linkage.
    Heights equal single linkage's. Ties merge in the order (value, i, j) of the edges with i < j.

    Attributes:
        n: number of points.
        children: int32 ``[m, 2]``, the nodes that merge, smaller number first; ``m`` is ``n``
            minus the number of connected components.
        heights: float64 ``[m]``, ascending, in the unit of the distances; always finite.
        sizes: int32 ``[m]``, points below each merge.
    """

    n: int
    children: NDArray[np.int32]
    heights: NDArray[np.float64]
    sizes: NDArray[np.int32]


def diagram(tree: MergeTree) -> NDArray[np.float64]:
    """H0 persistence diagram, float64 ``[n, 2]`` with columns birth and death, deaths ascending.

    Every class is born at 0. One dies at each merge (elder rule); one a connected component
    never does and has death ``inf``.
    """
    bars = np.zeros((tree.n, 2))
    bars[:, 1] = np.inf
    bars[: len(tree.heights), 1] = tree.heights
    return bars


@dataclass(frozen=True, slots=True, eq=False)
class ComponentForest:
    """Components of a merge forest; a component's parent has a larger number than its own.

    Attributes:
        births: float64 ``[c]``, merge height at which each component starts.
        deaths: float64 ``[c]``, merge height of the parent, or the filtration's end for a root.
        sizes: int32 ``[c]``, points just before the death.
        parents: int32 ``[c]``, -1 for a root.
        labels: int32 ``[n]``, the smallest component of each point, -1 for none.
    """

    births: NDArray[np.float64]
    deaths: NDArray[np.float64]
    sizes: NDArray[np.int32]
    parents: NDArray[np.int32]
    labels: NDArray[np.int32]

    @property
    def persistence(self) -> NDArray[np.float64]:
        """Death minus birth, float64 ``[c]``."""
        return self.deaths - self.births

    @property
    def is_root(self) -> NDArray[np.bool_]:
        """Whether a component never merges before the end of the filtration, bool ``[c]``."""
        return np.asarray(self.parents < 0)

    def members(self, component: int) -> NDArray[np.int64]:
        """Points of a component, int64, ascending: those labelled with it or one below it."""
        below = np.zeros(len(self.parents) + 1, dtype=bool)
        below[component] = True
        for c in range(component - 1, -1, -1):
            below[c] = self.parents[c] >= 0 and below[self.parents[c]]
        # Label -1 reads the extra last element, which stays False.
        return np.flatnonzero(below[self.labels])


def components(
    tree: MergeTree,
    *,
    min_component_size: int = 2,
    condense: bool = True,
    end: float | None = None,
) -> ComponentForest:
    """Components of a merge tree cut at ``end``: merges above it never happen.

    Merges of equal height count as one merge of several parts, so that the result does not
    depend on the order of the points. With ``condense``, a merge of at least two parts of
    ``min_component_size`` or more points ends them and starts a component; of one such part with
    smaller ones continues its life; of smaller parts starts a component if together they are
    large enough (a condensed tree, https://doi.org/10.1007/978-3-642-37456-2_14). Without it
    every merge with enough points is a component of its own. With ``min_component_size=1``
    points are components born at 0.

    Args:
        tree: from :func:`h0_persistence` or :func:`merge_tree`.
        min_component_size: at least 1.
        condense: False for raw branches.
        end: death of the roots, 0 or more, may be ``inf``; None for the largest merge height
            (0 without merges).

    Raises:
        TypeError: ``tree`` is not a :class:`MergeTree`.
        ValueError: a tree that is not one, a size below 1, an end that is negative or nan.

    Example:
        >>> import numpy as np
        >>> from dkn_engine.topology import components, h0_persistence
        >>> points = np.array([0.0, 1.0, 10.0, 12.0])
        >>> forest = components(h0_persistence(np.abs(points[:, None] - points)))
        >>> forest.births, forest.deaths, forest.labels
        (array([1., 2., 9.]), array([9., 9., 9.]), array([0, 0, 1, 1], dtype=int32))
    """
    if not isinstance(tree, MergeTree):
        raise TypeError(f"tree must be a MergeTree; got {type(tree).__name__}")
    if min_component_size < 1:
        raise ValueError(f"min_component_size must be at least 1; got {min_component_size}")
    if end is None:
        end = float(tree.heights[-1]) if len(tree.heights) else 0.0
    arrays = _native.components(
        tree.n, tree.children, tree.heights, tree.sizes, min_component_size, condense, float(end)
    )
    return ComponentForest(*arrays)
