"""Neurons that are joined across any two layers, and candidates from given distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dkn_engine import topology
from dkn_engine.config import TopologyConfig
from dkn_engine.errors import UserError
from dkn_engine.topology import candidates_by_distance, residual_distances, weight_distances
from tests.support import topology_oracle as reference
from tests.support.graphs import MakeGraph, normal_graph, tied_graph


def described(components: Any) -> list[Any]:
    return [(c.neurons.tolist(), c.birth, c.death) for c in components]


@pytest.mark.parametrize("make", [normal_graph, tied_graph])
@pytest.mark.parametrize(("n", "n_layers"), [(0, 1), (1, 1), (2, 1), (9, 4), (17, 5)])
def test_residual_distances_are_those_of_single_products(
    make: MakeGraph, n: int, n_layers: int
) -> None:
    graph = make(n, n_layers)
    found = residual_distances(*graph)
    assert found.shape == (n, n)
    for a in range(n):
        for b in range(n):
            low, high = sorted((a, b), key=lambda i: graph.neurons[i, 0])
            weight = sum(
                x * y
                for x, y in zip(graph.w_out[low].tolist(), graph.w_in[high].tolist(), strict=True)
            )
            if a == b:
                expected = 0.0
            elif graph.neurons[a, 0] == graph.neurons[b, 0] or weight == 0:
                expected = np.inf
            else:
                expected = abs(1 / weight)
            # Five products in another order: 5 eps of their sizes, which sum up to less than 40.
            bound = 0 if np.isinf(expected) else 5 * np.finfo(float).eps * 40 * expected**2
            assert found[a, b] == pytest.approx(expected, abs=bound, rel=1e-15)


def test_adjacent_edges_alone_give_the_candidates_of_the_adjacent_graph() -> None:
    graph = normal_graph(30, 6)
    matrix = topology.distances(*graph, max_span=1)
    config = TopologyConfig()
    by_weights = topology.find_candidates(*graph, config)
    assert len(by_weights) > 1
    assert described(candidates_by_distance(graph.neurons, matrix, config)) == described(by_weights)


def test_find_candidates_takes_the_residual_graph_by_name() -> None:
    graph = normal_graph(30, 6)
    config = TopologyConfig(connections="residual")
    found = topology.find_candidates(*graph, config)
    expected = candidates_by_distance(graph.neurons, residual_distances(*graph), config)
    assert described(found) == described(expected)
    assert described(found) != described(topology.find_candidates(*graph, TopologyConfig()))


def test_given_strengths_count_from_lower_to_higher_layers_only() -> None:
    neurons = [[1, 0], [0, 0], [1, 1]]
    strengths: list[list[float]] = [[9, 9, 9], [-0.5, 9, 0.0], [9, 9, 9]]
    expected = [[0, 2, np.inf], [2, 0, np.inf], [np.inf, np.inf, 0]]
    assert weight_distances(neurons, strengths).tolist() == expected


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ([[0.0]], r"weights must be \[2, 2\]; got \[1, 1\]"),
        ([[0.0, np.nan], [0.0, 0.0]], "weights must be finite"),
    ],
)
def test_strengths_that_are_none_are_refused(strengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weight_distances([[0, 0], [1, 0]], strengths)


def test_influence_cannot_be_found_in_weights() -> None:
    with pytest.raises(ValueError, match="'influence' is measured in a model"):
        topology.find_candidates(*normal_graph(5, 2), TopologyConfig(connections="influence"))


@pytest.mark.parametrize("most", [2, 4, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_tree_holds_every_part_of_the_filtration(most: int, seed: int) -> None:
    graph = normal_graph(12, 4, seed=seed)
    options: dict[str, Any] = {"end": "largest_merge", "end_value": None, "max_candidates": 1}
    config = TopologyConfig(select="tree", max_component_size=most, **options)
    found = topology.find_candidates(*graph, config)
    matrix = topology.distances(*graph)
    parts = {
        part
        for height in np.unique(matrix[np.isfinite(matrix)])
        for part in reference.partition(matrix, height)
        if 2 <= len(part) <= most
    }
    # A part that is born as the filtration ends has no persistence, and is none.
    ends = {frozenset(map(tuple, c.neurons.tolist())) for c in found}
    expected = {frozenset(map(tuple, graph.neurons[sorted(part)].tolist())) for part in parts}
    last = {
        frozenset(map(tuple, graph.neurons[sorted(part)].tolist()))
        for part in reference.partition(matrix, float(topology.merge_tree(*graph).heights[-1]))
        if part not in reference.partition(matrix, float(topology.merge_tree(*graph).heights[-2]))
    }
    assert ends == expected - last
    assert all(c.persistence > 0 for c in found)
    order = [(-c.persistence, c.birth, -len(c.neurons), c.neurons.tolist()) for c in found]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connections": "residual", "spans": "released"}, "connections must be 'adjacent' with"),
        ({"connections": "residual", "clustering": "released"}, "connections must be 'adjacent'"),
        ({"select": "tree", "clustering": "released"}, "select must be not 'tree' with"),
        ({"connections": "influence", "fold_norm": True}, "fold_norm must be false with"),
        ({"connections": "influence", "by_activation": True}, "by_activation must be false with"),
        ({"max_component_size": 0}, "max_component_size must be an integer of at least 1; got 0"),
        ({"max_families": 0}, "max_families must be an integer of at least 1; got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TopologyConfig(**options)
