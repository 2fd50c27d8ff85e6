"""Distances between located neurons and the merge trees of those distances."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine import _native
from dkn_engine.topology.arrays import as_distances, as_neurons, as_weights
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
    """
    if max_span is not None and (isinstance(max_span, bool) or not isinstance(max_span, int)):
        raise TypeError(f"max_span must be an integer or None; got {max_span!r}")
    if max_span is not None and max_span < 1:
        raise ValueError(f"max_span must be at least 1 or None; got {max_span}")
    limit = 0 if max_span is None else min(max_span, np.iinfo(np.int64).max)
    return _native.distances(as_neurons(neurons), *as_weights(w_out, w_in), limit)


def h0_persistence(distances: ArrayLike) -> MergeTree:
    """Merge tree of the Vietoris-Rips filtration of a dense distance matrix (Prim, O(n^2)).

    Args:
        distances: real ``[n, n]``, symmetric, 0 or more; ``inf`` never merges. The diagonal is
            not read.

    Raises:
        TypeError: not real numbers.
        ValueError: not square, not symmetric, negative or nan.
    """
    array = as_distances(distances)
    return MergeTree(len(array) if array.ndim else 0, *_native.dense_tree(array))


def merge_tree(neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike) -> MergeTree:
    """Merge tree of :func:`distances`, straight from the adjacent-layer edges (Kruskal).

    Longer spans cannot change it: a path's longest hop is an edge itself and no longer than the
    path. Arguments and errors as in :func:`distances`.
    """
    return layer_tree(neurons, w_out, w_in)[0]


def merge_trees(
    graphs: Iterable[tuple[ArrayLike, ArrayLike, ArrayLike]], n_threads: int = 1
) -> list[MergeTree]:
    """:func:`merge_tree` of many graphs, in their order, whatever the number of threads.

    Args:
        graphs: ``(neurons, w_out, w_in)`` of each.
        n_threads: threads over graphs, at least 1; the interpreter's lock is released.
    """
    arrays: list[tuple[NDArray[np.int32], Any, Any]] = [
        (as_neurons(neurons), *as_weights(w_out, w_in)) for neurons, w_out, w_in in graphs
    ]
    # One call holds one dtype, so that no float32 graph is copied for the sake of another.
    trees: dict[int, MergeTree] = {}
    for dtype in (np.float32, np.float64):
        chosen = [k for k, (_, w_out, _) in enumerate(arrays) if w_out.dtype == dtype]
        found = _native.layer_trees([arrays[k] for k in chosen], n_threads)
        for k, tree in zip(chosen, found, strict=True):
            trees[k] = MergeTree(len(arrays[k][0]), *tree)
    return [trees[k] for k in range(len(arrays))]


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
