from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dkn_engine import topology
from tests.support import topology_oracle as reference
from tests.support.graphs import LayerGraph, normal_graph, tied_graph


@pytest.mark.parametrize("max_span", [None, 1, 2, 3, 9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(4))
def test_distances_equal_path_enumeration(max_span: int | None, dtype: type, seed: int) -> None:
    graph = normal_graph(n=11, n_layers=5, dtype=dtype, seed=seed)
    found = topology.distances(*graph, max_span=max_span)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, reference.distances(*graph, max_span=max_span))


@pytest.mark.parametrize("seed", range(6))
def test_zero_weights_are_infinite_and_not_passed_through(seed: int) -> None:
    graph = tied_graph(n=9, n_layers=4, seed=seed)
    found = topology.distances(*graph)
    assert np.isinf(found).any()
    np.testing.assert_array_equal(found, reference.distances(*graph))


def test_weights_run_from_the_lower_layer_up_whatever_the_order_given() -> None:
    graph = LayerGraph(
        np.array([[3, 0], [2, 7]]), np.array([[1.0], [4.0]]), np.array([[0.5], [1.0]])
    )
    assert topology.distances(*graph)[0, 1] == 0.5
    assert topology.adjacent_distances(*graph).tolist() == [0.5]


def test_a_missing_layer_and_the_same_layer_are_infinite() -> None:
    graph = LayerGraph(np.array([[0, 0], [0, 1], [2, 0]]), np.ones((3, 1)), np.ones((3, 1)))
    off_diagonal = topology.distances(*graph)[np.triu_indices(3, k=1)]
    assert np.isinf(off_diagonal).all()
    assert len(topology.adjacent_distances(*graph)) == 0


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 8, 9, 33])
@pytest.mark.parametrize("d", [1, 4, 7, 64])
def test_dots_are_within_rounding_of_numpy_for_sizes_around_the_tile(n: int, d: int) -> None:
    random = np.random.default_rng(n * 100 + d)
    neurons = [[layer, i] for layer in (4, 5) for i in range(n)]
    w_out, w_in = random.standard_normal((2, 2 * n, d)).astype(np.float32)
    found = topology.distances(neurons, w_out, w_in)[:n, n:]
    exact = 1 / np.abs(w_out[:n].astype(np.float64) @ w_in[n:].T.astype(np.float64))
    # |dw| <= d eps sum|x y|, and the relative error of 1 / w is that of w.
    scale = np.abs(w_out[:n]).astype(np.float64) @ np.abs(w_in[n:]).T.astype(np.float64)
    bound = 2 * (d + 2) * np.finfo(np.float64).eps * scale * exact
    assert found.shape == exact.shape
    assert (np.abs(found - exact) <= bound * exact).all()


def test_distances_do_not_depend_on_the_order_or_the_company_of_neurons() -> None:
    graph = normal_graph(n=40, n_layers=6, dtype=np.float32)
    full = topology.distances(*graph, max_span=1)
    order = np.random.default_rng(1).permutation(40)
    permuted = topology.distances(*graph.permuted(order), max_span=1)
    np.testing.assert_array_equal(permuted, full[np.ix_(order, order)])
    some = order[:13]
    part = topology.distances(*graph.permuted(some), max_span=1)
    np.testing.assert_array_equal(part, full[np.ix_(some, some)])


def test_adjacent_distances_are_the_finite_ones_of_span_one() -> None:
    graph = tied_graph(n=20, n_layers=4)
    matrix = topology.distances(*graph, max_span=1)
    upper = matrix[np.triu_indices(20, k=1)]
    expected = np.sort(upper[np.isfinite(upper)])
    np.testing.assert_array_equal(np.sort(topology.adjacent_distances(*graph)), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"neurons": [[0.5, 1], [1, 1]]}, TypeError, "neurons must be integers"),
        ({"neurons": [[0, 1], [0, 1]]}, ValueError, r"distinct; got \(0, 1\) twice"),
        ({"neurons": [[0, 1], [-1, 1]]}, ValueError, "not be negative; got -1"),
        ({"neurons": [[0, 1], [2**31, 1]]}, ValueError, "fit in 32 bits; got 2147483648"),
        ({"neurons": [0, 1]}, ValueError, r"neurons must be \[n, 2\]; got \[2\]"),
        ({"w_out": np.ones((2, 3), np.float16)}, TypeError, "w_out must be float32 .* float16"),
        ({"w_out": np.ones(2)}, ValueError, r"w_out must be \[n, d\]; got \[2\]"),
        ({"w_in": np.ones((3, 3))}, ValueError, r"w_in must be \[2, 3\].*got \[3, 3\]"),
        ({"w_in": np.ones((2, 4))}, ValueError, r"w_in must be \[2, 3\].*got \[2, 4\]"),
        ({"w_in": np.full((2, 3), np.nan)}, ValueError, r"w_in must be finite; got nan at \[0, 0"),
        ({"w_out": np.diag([1, np.inf, 1])[:2]}, ValueError, r"w_out .* got inf at \[1, 1\]"),
        ({"max_span": 0}, ValueError, "max_span must be at least 1 or None; got 0"),
        ({"max_span": 1.5}, TypeError, "max_span must be an integer or None; got 1.5"),
    ],
)
def test_wrong_arguments_are_named(change: Any, error: type[Exception], message: str) -> None:
    arguments = {"neurons": [[0, 1], [1, 1]], "w_out": np.ones((2, 3)), "w_in": np.ones((2, 3))}
    with pytest.raises(error, match=message):
        topology.distances(**(arguments | change))


def test_an_overflowing_dot_is_refused() -> None:
    w_out, w_in = np.full((2, 2), 1e200), np.array([[1e200, -1e200]] * 2)
    with pytest.raises(ValueError, match="finite dot products"):
        topology.distances([[0, 0], [1, 0]], w_out, w_in)


@pytest.mark.parametrize("empty", [[], np.empty((0, 2), dtype=np.int64)])
def test_no_neurons_have_an_empty_matrix(empty: Any) -> None:
    found = topology.distances(empty, np.empty((0, 4)), np.empty((0, 4)))
    assert found.shape == (0, 0)


def test_views_and_mixed_precision_are_taken_without_loss() -> None:
    graph = normal_graph(n=12, n_layers=3, d=6)
    wide = np.repeat(graph.w_in, 2, axis=1)
    expected = topology.distances(*graph)
    np.testing.assert_array_equal(
        topology.distances(graph.neurons, graph.w_out, wide[:, ::2]), expected
    )
    mixed = topology.distances(graph.neurons, graph.w_out.astype(np.float32), graph.w_in)
    np.testing.assert_allclose(mixed, expected, rtol=1e-3)
