from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dkn_engine import topology
from tests.support.graphs import LayerGraph, MakeGraph, normal_graph, tied_graph


def length(graph: LayerGraph, path: NDArray[np.int64]) -> float:
    """Hops added from the lowest layer upwards."""
    hops = topology.distances(*graph, max_span=1)
    total = 0.0
    for a, b in itertools.pairwise(path):
        total += hops[a, b]
    return total


@pytest.mark.parametrize("make", [normal_graph, tied_graph])
@pytest.mark.parametrize("max_span", [None, 1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_path_has_one_neuron_a_layer_and_the_length_of_the_distance(
    make: MakeGraph, max_span: int | None, seed: int
) -> None:
    graph = make(16, 5, seed=seed)
    found = topology.shortest_paths(*graph, max_span=max_span)
    np.testing.assert_array_equal(
        found.distances, topology.distances(*graph, max_span=max_span), strict=True
    )
    layers = graph.neurons[:, 0]
    for a, b in itertools.product(range(16), repeat=2):
        path = found.path(a, b)
        if np.isinf(found.distances[a, b]):
            assert len(path) == 0
            continue
        assert (path[0], path[-1]) == (a, b)
        up = path if layers[a] <= layers[b] else path[::-1]
        np.testing.assert_array_equal(layers[up], np.arange(layers[up[0]], layers[up[-1]] + 1))
        assert length(graph, up) == found.distances[a, b]
        np.testing.assert_array_equal(found.path(b, a), path[::-1])


def test_of_equally_long_paths_the_first_neurons_is_taken() -> None:
    graph = LayerGraph(np.array([[2, 0], [1, 5], [1, 3], [0, 0]]), np.ones((4, 1)), np.ones((4, 1)))
    found = topology.shortest_paths(*graph)
    assert found.path(3, 0).tolist() == [3, 1, 0]
    assert found.previous.tolist() == [[-1] * 4, [1, -1, -1, -1], [2, -1, -1, -1], [1, 3, 3, -1]]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_points(n: int) -> None:
    graph = LayerGraph(
        np.array([[0, i] for i in range(n)]).reshape(-1, 2).astype(int),
        np.ones((n, 1)),
        np.ones((n, 1)),
    )
    found = topology.shortest_paths(*graph)
    assert found.previous.shape == (n, n)
    assert (found.previous == -1).all()
    assert [found.path(i, i).tolist() for i in range(n)] == [[i] for i in range(n)]


@pytest.mark.parametrize(("a", "b"), [(-1, 0), (0, 3)])
def test_positions_that_are_not_there_are_refused(a: Any, b: Any) -> None:
    found = topology.shortest_paths(*normal_graph(3, 2))
    with pytest.raises(IndexError, match=f"from 0 to 2; got {a} and {b}"):
        found.path(a, b)


def test_arguments_are_checked_as_those_of_distances() -> None:
    with pytest.raises(ValueError, match="max_span must be at least 1 or None; got 0"):
        topology.shortest_paths(*normal_graph(3, 2), max_span=0)
