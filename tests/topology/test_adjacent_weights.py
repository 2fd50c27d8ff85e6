"""The weights between located neurons of adjacent layers, in the order that a run keeps them."""

from __future__ import annotations

import numpy as np
import pytest

from dkn_engine import topology
from dkn_engine.neurons import adjacent_pairs
from dkn_engine.topology.adjacent_weights import adjacent_weights
from tests.support.graphs import normal_graph


def test_they_are_the_dots_of_the_pairs_one_by_one() -> None:
    """float64 dots of d terms differ by d eps of their terms' sum, then round to float32."""
    graph = normal_graph(n=30, n_layers=5, dtype=np.float32, seed=5)
    neurons, w_out, w_in = graph.permuted(np.random.default_rng(6).permutation(30))
    neurons = np.asarray(neurons, dtype=np.int32)
    order = sorted(range(30), key=lambda i: tuple(neurons[i]))
    pairs = [(a, b) for a in order for b in order if neurons[b, 0] == neurons[a, 0] + 1]
    assert len(pairs) > 30
    assert adjacent_pairs(neurons).tolist() == [list(pair) for pair in pairs]
    found = adjacent_weights(neurons, w_out, w_in)
    assert found.dtype == np.float32
    expected = [w_out[a].astype(np.float64) @ w_in[b].astype(np.float64) for a, b in pairs]
    size = max(float(abs(w_out[a]) @ abs(w_in[b])) for a, b in pairs)
    tolerance = size * (np.finfo(np.float32).eps / 2 + 2 * w_in.shape[1] * np.finfo(float).eps)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_their_inverses_are_the_adjacent_distances() -> None:
    graph = normal_graph(n=20, n_layers=4, dtype=np.float32, seed=2)
    neurons = np.asarray(graph[0], dtype=np.int32)
    found = 1 / np.abs(adjacent_weights(neurons, *graph[1:]).astype(np.float64))
    # Rounding to float32 is half of this, and that of the float64 sums nothing beside it.
    expected = np.sort(topology.adjacent_distances(*graph))
    np.testing.assert_allclose(np.sort(found), expected, rtol=float(np.finfo(np.float32).eps))


@pytest.mark.parametrize("layers", [[], [3, 3, 3], [0, 0, 2, 2]])
def test_without_neighbours_there_are_none(layers: list[int]) -> None:
    neurons = np.array([[layer, i] for i, layer in enumerate(layers)], np.int32).reshape(-1, 2)
    rows = np.ones((len(layers), 4), np.float32)
    assert adjacent_pairs(neurons).shape == (0, 2)
    assert adjacent_weights(neurons, rows, rows).shape == (0,)
