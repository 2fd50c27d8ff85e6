"""Random layer graphs for the topology tests."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class LayerGraph(NamedTuple):
    """Arguments of ``distances`` and ``merge_tree``."""

    neurons: NDArray[np.int32]
    w_out: NDArray[np.floating]
    w_in: NDArray[np.floating]

    def permuted(self, order: NDArray[np.int64]) -> LayerGraph:
        return LayerGraph(self.neurons[order], self.w_out[order], self.w_in[order])


class MakeGraph(Protocol):
    """What ``normal_graph`` and ``tied_graph`` have in common."""

    def __call__(self, n: int, n_layers: int, *, seed: int = 0) -> LayerGraph: ...


def normal_graph(
    n: int, n_layers: int, d: int = 5, dtype: type = np.float64, seed: int = 0
) -> LayerGraph:
    """Normal weights: no ties, no zeros."""
    random = np.random.default_rng(seed)
    neurons = np.stack([random.integers(0, n_layers, n), random.permutation(n)], axis=1)
    w_out, w_in = random.standard_normal((2, n, d)).astype(dtype)
    return LayerGraph(neurons.astype(np.int32), w_out, w_in)


def tied_graph(n: int, n_layers: int, seed: int = 0) -> LayerGraph:
    """Small whole weights: many ties and many zero weights, so infinite distances."""
    random = np.random.default_rng(seed)
    graph = normal_graph(n, n_layers, d=2, seed=seed)
    w_out, w_in = random.integers(-2, 3, (2, n, 2)).astype(np.float64)
    return LayerGraph(graph.neurons, w_out, w_in)


def tied_distances(n: int, seed: int = 0) -> NDArray[np.float64]:
    """A symmetric matrix of a few lengths, a quarter of them infinite."""
    random = np.random.default_rng(seed)
    values = random.choice([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, np.inf, np.inf], (n, n))
    upper: NDArray[np.float64] = np.triu(values, k=1)
    return upper + upper.T


def partition(tree_n: int, children: NDArray[np.int32], merges: int) -> set[frozenset[int]]:
    """The parts of a forest after its first ``merges`` merges."""
    nodes = [frozenset({i}) for i in range(tree_n)]
    alive = set(nodes)
    for left, right in children[:merges]:
        alive -= {nodes[left], nodes[right]}
        nodes.append(nodes[left] | nodes[right])
        alive.add(nodes[-1])
    return alive
