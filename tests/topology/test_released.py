from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from dkn_engine import topology
from dkn_engine.config import Config, TopologyConfig
from dkn_engine.topology import released
from tests.support.graphs import LayerGraph, MakeGraph, normal_graph, tied_graph

CONFIG = Config.released().topology


def enumerated(
    neurons: NDArray[np.int32],
    w_out: NDArray[np.floating],
    w_in: NDArray[np.floating],
    max_span: int,
) -> NDArray[np.float64]:
    """The published enumeration, pair by pair and combination by combination."""

    def hop(a: int, b: int) -> float:
        weight = float(w_out[a].astype(float) @ w_in[b].astype(float))
        return abs(1 / weight) if weight else 1000.0

    n = len(neurons)
    layers = neurons[:, 0].tolist()
    result = np.full((n, n), 1000.0)
    np.fill_diagonal(result, 0)
    for a, b in itertools.permutations(range(n), 2):
        span = layers[b] - layers[a]
        if not 1 <= span <= max_span:
            continue
        between = [i for i in range(n) if layers[a] < layers[i] < layers[b]]
        if span == 1:
            result[a, b] = result[b, a] = hop(a, b)
        elif len({layers[i] for i in between}) == span - 1:
            for combination in itertools.combinations(between, max_span - 1):
                inner = sorted(combination, key=lambda i: layers[i])
                if layers[inner[0]] == layers[a] + 1 and layers[inner[-1]] == layers[b] - 1:
                    length = sum(hop(i, j) for i, j in itertools.pairwise([a, *inner, b]))
                    result[a, b] = result[b, a] = min(result[a, b], length)
    return result


@pytest.mark.parametrize("max_span", [1, 2, 3, 4])
@pytest.mark.parametrize("make", [normal_graph, tied_graph])
@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_the_enumeration_of_combinations(
    max_span: int, make: MakeGraph, seed: int
) -> None:
    graph = make(13, 5, seed=seed)
    found = released.enumerated_distances(*graph, max_span=max_span)
    np.testing.assert_allclose(found, enumerated(*graph, max_span), rtol=1e-12)


def chain(*layers: int) -> LayerGraph:
    """Neurons of weight 1 to one another: every hop has length 1."""
    neurons = np.array([[layer, i] for i, layer in enumerate(layers)], dtype=np.int32)
    return LayerGraph(neurons, np.ones((len(layers), 1)), np.ones((len(layers), 1)))


def test_a_span_of_two_runs_through_two_neurons_of_the_layer_between() -> None:
    found = released.enumerated_distances(*chain(0, 1, 1, 2))
    assert found[0, 3] == 3
    assert topology.distances(*chain(0, 1, 1, 2))[0, 3] == 2


def test_a_span_of_two_is_unreachable_through_one_neuron() -> None:
    assert released.enumerated_distances(*chain(0, 1, 2))[0, 2] == 1000


def test_a_span_of_three_takes_one_neuron_a_layer_and_four_is_unreachable() -> None:
    found = released.enumerated_distances(*chain(0, 1, 2, 3, 4))
    assert found[0, 3] == 3
    assert found[0, 4] == 1000


def test_neurons_of_one_layer_and_zero_weights_are_unreachable() -> None:
    neurons, w_out, w_in = chain(0, 0, 1)
    w_in[2] = 0
    assert released.enumerated_distances(neurons, w_out, w_in)[0].tolist() == [0, 1000, 1000]


def matrix_of(n: int, edges: dict[tuple[int, int], float]) -> np.ndarray:
    matrix = np.full((n, n), 1000.0)
    for (i, j), value in edges.items():
        matrix[i, j] = matrix[j, i] = value
    return matrix


def test_half_of_the_edges_below_the_threshold_are_united() -> None:
    edges = {(0, 1): 1.0, (2, 3): 2.0, (1, 2): 3.0, (4, 5): 4.0}
    found = released.clusters(matrix_of(6, edges), threshold=5.0)
    # Births 1, 1, 2, 2, 0, 0: median 1. Last of all edges 4: persistences 3 and 2.
    assert [(points.tolist(), birth, death) for points, birth, death in found] == [
        ([0, 1], 1.0, 4.0),
        ([2, 3], 2.0, 4.0),
    ]


def test_the_threshold_is_strict() -> None:
    edges = {(0, 1): 1.0, (2, 3): 2.0, (1, 2): 3.0, (4, 5): 4.0}
    found = released.clusters(matrix_of(6, edges), threshold=4.0)
    # Three edges are left and one is united: births 1, 1, 0, 0, 0, 0; persistence 3 - 1.
    assert [(points.tolist(), birth, death) for points, birth, death in found] == [
        ([0, 1], 1.0, 3.0)
    ]


def test_the_second_root_becomes_the_parent_on_ties_of_rank() -> None:
    # 0-1 at 1 and 2-3 at 2 have roots 1 and 3; at 3 their union keeps root 3, born at 2.
    edges = {(0, 1): 1.0, (2, 3): 2.0, (0, 2): 3.0, (0, 4): 7.0, (1, 4): 8.0, (2, 4): 9.0}
    found = released.clusters(matrix_of(5, edges), threshold=10.0)
    assert [(points.tolist(), birth, death) for points, birth, death in found] == [
        ([0, 1, 2, 3], 2.0, 9.0)
    ]


def test_a_cluster_must_persist_longer_than_the_median_birth() -> None:
    # Births 4, 4: median 4, persistence 5 - 4.
    edges = {(0, 1): 4.0, (0, 2): 5.0}
    assert released.clusters(matrix_of(2, {(0, 1): 4.0}), threshold=9.0) == []
    assert released.clusters(matrix_of(3, edges), threshold=9.0) == []


def test_the_threshold_is_a_quantile_of_the_distances_below_a_hundred() -> None:
    graph = normal_graph(n=40, n_layers=6)
    found = topology.find_candidates(*graph, CONFIG)
    matrix = released.enumerated_distances(*graph)
    lengths = matrix[np.triu_indices(40, k=1)]
    threshold = np.quantile(lengths[lengths < 100], 0.2)
    expected = released.clusters(matrix, threshold)
    assert len(found) == len(expected) > 0
    for component, (points, birth, death) in zip(found, expected, strict=True):
        assert component.neurons.tolist() == sorted(graph.neurons[points].tolist())
        assert (component.birth, component.death) == (birth, death)


def test_a_radius_and_shortest_paths_can_be_asked_for() -> None:
    graph = normal_graph(n=40, n_layers=6)
    options = TopologyConfig(clustering="released", end="radius", end_value=1.0)
    shortest = topology.distances(*graph, max_span=3)
    expected = released.clusters(np.where(np.isinf(shortest), 1000.0, shortest), 1.0)
    found = topology.find_candidates(*graph, options)
    assert [len(c.neurons) for c in found] == [len(points) for points, _, _ in expected]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_neurons_without_edges_have_no_clusters(n: int) -> None:
    neurons = [[0, i] for i in range(n)]
    assert topology.find_candidates(neurons, np.ones((n, 2)), np.ones((n, 2)), CONFIG) == ()


def test_the_largest_merge_is_no_end_here() -> None:
    options = TopologyConfig(clustering="released", end="largest_merge", end_value=None)
    with pytest.raises(ValueError, match="end must be 'quantile' or 'radius'"):
        topology.find_candidates(*normal_graph(10, 3), options)
