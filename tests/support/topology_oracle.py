"""Plain oracles of the topology: loops over definitions, for small inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.topology.tree import ComponentForest, MergeTree

Floats = NDArray[np.float64]
Weights = NDArray[np.floating[Any]]
Parts = list[frozenset[int]]


def distances(
    neurons: NDArray[np.int32], w_out: Weights, w_in: Weights, max_span: int | None = None
) -> Floats:
    """Distances by enumerating every path with one located neuron a layer; see the package."""
    n = len(neurons)
    layers = [int(layer) for layer, _ in neurons]
    result = np.full((n, n), np.inf)
    np.fill_diagonal(result, 0.0)
    for a, b in itertools.permutations(range(n), 2):
        span = layers[b] - layers[a]
        if span < 1 or (max_span is not None and span > max_span):
            continue
        between = [
            [i for i in range(n) if layers[i] == layer] for layer in range(layers[a] + 1, layers[b])
        ]
        for inner in itertools.product(*between):
            path = (a, *inner, b)
            length = 0.0
            for i, j in itertools.pairwise(path):
                length += _hop(w_out[i], w_in[j])
            result[a, b] = result[b, a] = min(result[a, b], length)
    return result


def _hop(out: Floats, in_: Floats) -> float:
    # Summed one by one, in the order of the columns, as the fast path does.
    weight = 0.0
    for x, y in zip(out.tolist(), in_.tolist(), strict=True):
        weight += x * y
    return abs(1 / weight) if weight != 0 else np.inf


def h0_persistence(distances: Floats) -> MergeTree:
    """Kruskal's algorithm with a node number for each point, relabelled at each merge."""
    n = len(distances)
    edges = sorted(
        (float(distances[i, j]), i, j)
        for i, j in itertools.combinations(range(n), 2)
        if np.isfinite(distances[i, j])
    )
    node = list(range(n))
    children: list[list[int]] = []
    heights: list[float] = []
    sizes: list[int] = []
    for value, i, j in edges:
        pair = sorted({node[i], node[j]})
        if len(pair) == 2:
            merged = [k for k in range(n) if node[k] in pair]
            for k in merged:
                node[k] = n + len(heights)
            children.append(pair)
            heights.append(value)
            sizes.append(len(merged))
    return MergeTree(
        n,
        np.array(children, dtype=np.int32).reshape(-1, 2),
        np.array(heights, dtype=np.float64),
        np.array(sizes, dtype=np.int32),
    )


def partition(distances: Floats, radius: float) -> Parts:
    """Connected components of the graph of edges of at most ``radius``, by flood fill."""
    n = len(distances)
    left, parts = set(range(n)), []
    while left:
        part: set[int] = set()
        stack = [min(left)]
        while stack:
            i = stack.pop()
            if i in part:
                continue
            part.add(i)
            stack.extend(j for j in range(n) if j not in part and distances[i, j] <= radius)
        parts.append(frozenset(part))
        left -= part
    return parts


def components(
    distances: Floats, min_component_size: int = 2, condense: bool = True, end: float = np.inf
) -> ComponentForest:
    """Components by comparing the partition at each height with the one before.

    The numbers of components born at one height follow their smallest point, which is one of
    several valid orders.
    """
    n = len(distances)
    births: list[float] = []
    deaths: list[float] = []
    parents: list[int] = []
    members: list[frozenset[int]] = []
    alive: dict[frozenset[int], int] = {}

    def start(part: frozenset[int], height: float) -> int:
        births.append(height)
        deaths.append(end)
        parents.append(-1)
        members.append(part)
        return len(births) - 1

    if min_component_size == 1:
        alive = {frozenset({i}): start(frozenset({i}), 0.0) for i in range(n)}
    for height in _heights(distances, end):
        now: dict[frozenset[int], int] = {}
        for part in partition(distances, height):
            below = [c for old, c in alive.items() if old <= part]
            if part in alive:
                now[part] = alive[part]
            elif len(part) < min_component_size:
                continue
            elif condense and len(below) == 1:
                now[part] = below[0]
                members[below[0]] = part
            else:
                now[part] = start(part, height)
                for c in below:
                    parents[c], deaths[c] = now[part], height
        alive = now
    return ComponentForest(
        np.array(births, dtype=np.float64),
        np.array(deaths, dtype=np.float64),
        np.array([len(m) for m in members], dtype=np.int32),
        np.array(parents, dtype=np.int32),
        np.array(_labels(members, n), dtype=np.int32),
    )


def _heights(distances: Floats, end: float) -> Iterator[float]:
    upper = distances[np.triu_indices(len(distances), k=1)]
    for height in np.unique(upper[np.isfinite(upper)]):
        if height <= end:
            yield float(height)


def _labels(members: list[frozenset[int]], n: int) -> list[int]:
    """For each point the smallest set that holds it (the earliest: sets only grow upwards)."""
    return [next((c for c, m in enumerate(members) if i in m), -1) for i in range(n)]


def best_family(forest: ComponentForest, eligible: NDArray[np.bool_], weights: Floats) -> float:
    """Greatest total weight over all disjoint families of eligible components, by trying all."""
    sets = {int(c): set(forest.members(int(c)).tolist()) for c in np.flatnonzero(eligible)}
    best = 0.0
    for size in range(len(sets) + 1):
        for family in itertools.combinations(sets, size):
            union = set().union(*(sets[c] for c in family))
            if len(union) == sum(len(sets[c]) for c in family):
                best = max(best, sum(float(weights[c]) for c in family))
    return best
