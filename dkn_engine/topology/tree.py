"""The H0 merge tree of a Vietoris-Rips filtration, and its bars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
