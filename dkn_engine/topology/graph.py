"""Distances between located neurons, the paths behind them, and their merge trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine import _native
from dkn_engine.neurons import as_neurons
from dkn_engine.topology.arrays import as_distances, as_span, as_weights, without_rounding
from dkn_engine.topology.tree import MergeTree


def distances(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, max_span: int | None = None
) -> NDArray[np.float64]:
    """Distance matrix float64 ``[n, n]`` of located neurons, in units of 1 / weight.

    For ``a`` in layer l and ``b`` in layer l + 1 it is ``|1 / (w_out[a] . w_in[b])|``, with the
    dot accumulated in float64. Across more layers it is the shortest path through located
    neurons, one in each layer between. ``inf`` within a layer, beyond ``max_span`` layers and
    where no path leads; 0 on the diagonal.

    Args:
        neurons: int ``[n, 2]``, columns layer and index, distinct, in any order.
        w_out: float32 or float64 ``[n, d]``; row i is what neuron i writes.
        w_in: float32 or float64 ``[n, d]``; row i is what neuron i reads.
        max_span: most layers that a distance crosses, at least 1; None for no limit.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, duplicate or negative neurons, weights that are not finite.

    Example:
        >>> import numpy as np
        >>> from dkn_engine.topology import distances
        >>> w_out, w_in = np.ones((3, 1)), np.array([[1.0], [2.0], [4.0]])
        >>> distances([(0, 7), (1, 3), (2, 5)], w_out, w_in)
        array([[0.  , 0.5 , 0.75],
               [0.5 , 0.  , 0.25],
               [0.75, 0.25, 0.  ]])
    """
    limit = as_span(max_span)
    return _native.distances(as_neurons(neurons), *as_weights(w_out, w_in), limit)


def residual_distances(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike
) -> NDArray[np.float64]:
    """Distance matrix float64 ``[n, n]`` of neurons that the residual stream joins directly.

    What a neuron writes is read in every layer above: for ``a`` in a lower layer than ``b`` the
    distance is ``|1 / (w_out[a] . w_in[b])|``, in float64, however many layers are between. ``inf``
    within a layer and where the weight is 0; 0 on the diagonal. Arguments and errors as in
    :func:`distances`.
    """
    points, (out, into) = as_neurons(neurons), as_weights(w_out, w_in)
    layer_tree(points, out, into)  # Refuses what is not a graph.
    # A sum of products a row pair, so that a distance depends on its two rows alone.
    weights = np.einsum("ad,bd->ab", out.astype(np.float64), into.astype(np.float64))
    return weight_distances(points, weights)


def weight_distances(neurons: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Distance matrix float64 ``[n, n]`` of neurons between which strengths are given.

    Args:
        neurons: int ``[n, 2]``, columns layer and index.
        weights: real ``[n, n]``, of row a on column b; read where a is in a lower layer than b.

    Returns:
        ``1 / |weight|``; ``inf`` within a layer and where the weight is 0; 0 on the diagonal.

    Raises:
        ValueError: another shape, or weights that are not finite.
    """
    points, table = as_neurons(neurons), np.asarray(weights, dtype=np.float64)
    n = len(points)
    if table.shape != (n, n):
        raise ValueError(f"weights must be [{n}, {n}]; got {list(table.shape)}")
    if not np.isfinite(table).all():
        raise ValueError("weights must be finite; got nan or inf")
    up = points[:, None, 0] < points[None, :, 0]
    size = np.where(up, np.abs(table), 0.0)
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = 1 / (size + size.T)  # of two mirrored ones, one is 0
    np.fill_diagonal(found, 0.0)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class ShortestPaths:
    """Shortest paths between all located neurons.

    Attributes:
        distances: float64 ``[n, n]``, as :func:`distances` returns them.
        previous: int32 ``[n, n]``; for a finite distance from ``a`` to ``b`` in a higher layer the
            neuron just before ``b`` on the path, ``a`` itself if their layers are adjacent; -1
            elsewhere, so also from a higher layer to a lower one.
    """

    distances: NDArray[np.float64]
    previous: NDArray[np.int32]

    def path(self, a: int, b: int) -> NDArray[np.int64]:
        """Positions of the neurons from ``a`` to ``b``, both included, int64 1-D.

        One neuron a layer; their distances, added from the lowest layer upwards, sum up to
        ``distances[a, b]`` exactly. Empty if the distance is infinite; ``[a]`` if ``b`` is ``a``.

        Raises:
            IndexError: not positions of neurons.
        """
        n = len(self.distances)
        if not (0 <= a < n and 0 <= b < n):
            raise IndexError(f"a and b must be from 0 to {n - 1}; got {a} and {b}")
        if not np.isfinite(self.distances[a, b]):
            return np.empty(0, dtype=np.int64)
        low, high = (a, b) if self.previous[a, b] >= 0 else (b, a)
        steps = [high]
        while steps[-1] != low:
            steps.append(int(self.previous[low, steps[-1]]))
        return np.array(steps if high == a else steps[::-1], dtype=np.int64)


def shortest_paths(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, max_span: int | None = None
) -> ShortestPaths:
    """:func:`distances` and which neurons each of them goes through.

    Of several paths of one length the one whose last neuron before the upper end comes first in
    ``neurons`` is taken, then the one before it, and so on downwards. 4 n^2 bytes more than the
    distances. Arguments and errors as in :func:`distances`.
    """
    limit = as_span(max_span)
    arrays = _native.layer_paths(as_neurons(neurons), *as_weights(w_out, w_in), limit)
    return ShortestPaths(*arrays)


def h0_persistence(distances: ArrayLike) -> MergeTree:
    """Merge tree of the Vietoris-Rips filtration of a dense distance matrix (Prim, O(n^2)).

    Args:
        distances: real ``[n, n]``, symmetric, 0 or more; ``inf`` never merges. The diagonal is
            not read. Of two values that differ by rounding, four units in the last place of the
            given type or less, the larger counts. The type is float32 where all values are exactly
            values of float32.

    Raises:
        TypeError: not real numbers.
        ValueError: not square, not symmetric, negative or nan.
    """
    array = as_distances(distances)
    try:
        tree = _native.dense_tree(array)
    except ValueError:
        if array.ndim != 2 or array.shape[0] != array.shape[1]:
            raise
        # Only now, since a matrix that is symmetric to the bit needs no copy.
        tree = _native.dense_tree(without_rounding(array, np.asarray(distances).dtype))
    return MergeTree(len(array) if array.ndim else 0, *tree)


def merge_tree(neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike) -> MergeTree:
    """Merge tree of :func:`distances`, straight from the adjacent-layer edges (Kruskal).

    Longer spans cannot change it: a path's longest hop is an edge itself and no longer than the
    path. Arguments and errors as in :func:`distances`.
    """
    return layer_tree(neurons, w_out, w_in)[0]


def adjacent_distances(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike
) -> NDArray[np.float64]:
    """Finite distances between neurons in adjacent layers, float64 1-D, by layer.

    Arguments and errors as in :func:`distances`.
    """
    return layer_tree(neurons, w_out, w_in)[1]


def layer_tree(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike
) -> tuple[MergeTree, NDArray[np.float64]]:
    """:func:`merge_tree` and :func:`adjacent_distances` for the price of one."""
    array = as_neurons(neurons)
    tree, lengths = _native.layer_tree(array, *as_weights(w_out, w_in))
    return MergeTree(len(array), *tree), lengths
