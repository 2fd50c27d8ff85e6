"""The clustering of the published code (arXiv 2402.13731), reproduced for comparison.

It departs from the definitions of this package in ways that change its results: longer spans are
enumerated rather than shortest paths, 1000 stands for "unreachable", and a cluster's "birth" is
read off one vertex that union by rank happens to leave at the root. Dots are accumulated in
float64 here and in float32 there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import TopologyConfig
from dkn_engine.neurons import as_neurons
from dkn_engine.topology.arrays import as_weights, component
from dkn_engine.topology.graph import distances
from dkn_engine.types import Component

UNREACHABLE = 1000.0
FINITE_BELOW = 100.0
# Fixed in the published code, where they are called fraction_of_edges and persistence_quantile.
EDGE_FRACTION = 0.5
BIRTH_QUANTILE = 0.5
DEFAULT_MAX_SPAN = 3


def released_candidates(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, config: TopologyConfig
) -> tuple[Component, ...]:
    """Clusters of the published code, in the order of their first (highest-scoring) neuron.

    Of ``config``, ``spans``, ``max_span`` (None: 3), ``end`` and ``end_value`` are read; the
    family is not truncated. A component's birth is its root vertex's, its death the last edge.

    Arguments and errors as in :func:`dkn_engine.topology.distances`, neurons by descending score,
    on which ties and spans depend. ``end`` must be ``quantile`` (of the finite distances) or
    ``radius``: ``largest_merge`` is a ValueError.
    """
    points = as_neurons(neurons)
    matrix = cluster_distances(points, w_out, w_in, config)
    lengths = matrix[np.triu_indices(len(points), k=1)]
    lengths = lengths[lengths < FINITE_BELOW]
    if not len(lengths):
        return ()
    if config.end == "largest_merge" or config.end_value is None:
        raise ValueError(
            "end must be 'quantile' or 'radius' with clustering='released'; "
            f"got {config.end!r} with end_value {config.end_value!r}"
        )
    threshold = config.end_value
    if config.end == "quantile":
        threshold = float(np.quantile(lengths, config.end_value))
    return tuple(
        component(points[members], birth, death)
        for members, birth, death in clusters(matrix, threshold)
    )


def cluster_distances(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, config: TopologyConfig
) -> NDArray[np.float64]:
    """Float64 ``[n, n]`` with 1000 for unreachable, spans as ``config.spans`` says."""
    max_span = DEFAULT_MAX_SPAN if config.max_span is None else config.max_span
    if config.spans == "released":
        return enumerated_distances(neurons, w_out, w_in, max_span)
    shortest = distances(neurons, w_out, w_in, max_span)
    return np.where(np.isfinite(shortest), shortest, UNREACHABLE)


def enumerated_distances(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, max_span: int = DEFAULT_MAX_SPAN
) -> NDArray[np.float64]:
    """Distances over every combination of ``max_span - 1`` located neurons between, ``[n, n]``.

    Whatever the span, a path has ``max_span - 1`` inner neurons: sorted by layer and, within a
    layer, by score; the first in the layer after the start, the last in the layer before the
    end. With ``max_span=3`` a span of 2 runs through two neurons of one layer, whose weight is
    computed as if they were adjacent. Every layer between must hold a located neuron.
    """
    points = as_neurons(neurons)
    n = len(points)
    distances(points, w_out, w_in, 1)  # For its checks.
    hops = _hops(*as_weights(w_out, w_in))
    result = np.full((n, n), UNREACHABLE)
    np.fill_diagonal(result, 0.0)
    layers = points[:, 0].astype(np.int64)
    for low in np.unique(layers):
        for span in range(1, max_span + 1):
            block = _span_block(hops, layers, int(low), span, max_span)
            start, stop = np.flatnonzero(layers == low), np.flatnonzero(layers == low + span)
            result[np.ix_(start, stop)] = block
            result[np.ix_(stop, start)] = block.T
    return result


def _hops(w_out: NDArray[np.floating], w_in: NDArray[np.floating]) -> NDArray[np.float64]:
    """Length of a hop from any neuron to any other as if their layers were adjacent."""
    weights = w_out.astype(np.float64) @ w_in.astype(np.float64).T
    lengths = np.full_like(weights, UNREACHABLE)
    return np.abs(np.divide(1.0, weights, out=lengths, where=weights != 0))


def _span_block(
    hops: NDArray[np.float64], layers: NDArray[np.int64], low: int, span: int, max_span: int
) -> NDArray[np.float64]:
    """Distances between the neurons of layers ``low`` and ``low + span``."""
    start, stop = np.flatnonzero(layers == low), np.flatnonzero(layers == low + span)
    if span == 1:
        return hops[np.ix_(start, stop)]
    between = np.flatnonzero((layers > low) & (layers < low + span))
    inner = between[np.argsort(layers[between], kind="stable")]
    if len(np.unique(layers[inner])) < span - 1:
        return np.full((len(start), len(stop)), UNREACHABLE)
    later = np.triu(np.ones((len(inner), len(inner)), dtype=bool), k=1)
    steps = np.where(later, hops[np.ix_(inner, inner)], np.inf)
    length = np.where(layers[inner] == low + 1, hops[np.ix_(start, inner)], np.inf)
    for _ in range(max_span - 2):
        length = _min_plus(length, steps)
    length[:, layers[inner] != low + span - 1] = np.inf
    return np.minimum(_min_plus(length, hops[np.ix_(inner, stop)]), UNREACHABLE)


def _min_plus(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.full((left.shape[0], right.shape[1]), np.inf)
    for k in range(left.shape[1]):
        np.minimum(result, left[:, k, None] + right[k], out=result)
    return result


def clusters(
    matrix: NDArray[np.float64], threshold: float
) -> list[tuple[NDArray[np.int64], float, float]]:
    """Points, birth and death of each cluster that is kept, by first point.

    Of the m edges strictly below the threshold, sorted by length and then (i, j), the first
    ``int(m / 2)`` are united. Before each union a vertex whose cluster has one point gets the
    edge's length as its birth; others keep 0. A cluster of two or more points is kept if the
    last of all m edges minus the birth of its root vertex exceeds the median of all births.
    """
    n = len(matrix)
    rows, cols = np.triu_indices(n, k=1)
    lengths = matrix[rows, cols]
    below = np.flatnonzero(lengths < threshold)
    order = below[np.argsort(lengths[below], kind="stable")]
    if not len(order):
        return []
    births = np.zeros(n)
    forest = _RankedForest(n)
    for e in order[: int(EDGE_FRACTION * len(order))]:
        i, j = int(rows[e]), int(cols[e])
        if forest.find(i) == forest.find(j):
            continue
        for vertex in (i, j):
            if forest.sizes[forest.find(vertex)] == 1:
                births[vertex] = lengths[e]
        forest.unite(i, j)
    members: dict[int, list[int]] = {}
    for i in range(n):
        members.setdefault(forest.find(i), []).append(i)
    death = float(lengths[order[-1]])
    least = float(np.quantile(births, BIRTH_QUANTILE))
    return [
        (np.array(points), float(births[root]), death)
        for root, points in members.items()
        if len(points) > 1 and death - births[root] > least
    ]


class _RankedForest:
    """Union by rank in which, on ties, the second root becomes the parent."""

    def __init__(self, n: int) -> None:
        self.parents = list(range(n))
        self.ranks = [0] * n
        self.sizes = [1] * n

    def find(self, x: int) -> int:
        while self.parents[x] != x:
            self.parents[x] = self.parents[self.parents[x]]
            x = self.parents[x]
        return x

    def unite(self, x: int, y: int) -> None:
        child, parent = self.find(x), self.find(y)
        if self.ranks[child] > self.ranks[parent]:
            child, parent = parent, child
        self.parents[child] = parent
        if self.ranks[child] == self.ranks[parent]:
            self.ranks[parent] += 1
        self.sizes[parent] += self.sizes[child]
