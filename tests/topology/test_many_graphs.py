from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dkn_engine import topology
from tests.support.graphs import LayerGraph, normal_graph, tied_graph

SIZES = [0, 1, 2, 13, 40, 7]


def ragged_graphs() -> list[LayerGraph]:
    """Graphs of several sizes and both dtypes, some with ties and infinite distances."""
    normal = [normal_graph(n, 4, dtype=(np.float32, np.float64)[n % 2], seed=n) for n in SIZES]
    return normal + [tied_graph(n, 4, seed=n) for n in SIZES]


def assert_equal_fields(found: Any, expected: Any) -> None:
    for name in type(expected).__slots__:
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name), err_msg=name, strict=name != "n"
        )


@pytest.mark.parametrize("n_threads", [1, 2, 5, 100])
def test_each_graph_gets_what_the_single_graph_functions_give(n_threads: int) -> None:
    graphs = ragged_graphs()
    found = topology.analyze_graphs(graphs, n_threads=n_threads)
    assert len(found) == len(graphs)
    for graph, result in zip(graphs, found, strict=True):
        tree = topology.merge_tree(*graph)
        assert_equal_fields(result.tree, tree)
        assert_equal_fields(result.components, topology.components(tree))
        np.testing.assert_array_equal(
            result.adjacent_distances, topology.adjacent_distances(*graph), strict=True
        )
        assert result.distances is None


@pytest.mark.parametrize("max_span", [None, 1, 2])
def test_distances_come_when_asked_for(max_span: int | None) -> None:
    graphs = ragged_graphs()
    found = topology.analyze_graphs(graphs, with_distances=True, max_span=max_span, n_threads=2)
    for graph, result in zip(graphs, found, strict=True):
        np.testing.assert_array_equal(
            result.distances, topology.distances(*graph, max_span=max_span), strict=True
        )


def test_ends_and_options_reach_each_graph() -> None:
    graphs = [normal_graph(30, 4, seed=seed) for seed in range(3)]
    ends = [0.3, None, np.inf]
    found = topology.analyze_graphs(graphs, end=ends, min_component_size=3, condense=False)
    for graph, end, result in zip(graphs, ends, found, strict=True):
        expected = topology.components(
            topology.merge_tree(*graph), end=end, min_component_size=3, condense=False
        )
        assert_equal_fields(result.components, expected)


def test_no_graphs_have_no_results() -> None:
    assert topology.analyze_graphs([]) == []
    assert topology.merge_trees(iter([])) == []


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_error_names_the_graph(n_threads: int) -> None:
    graphs = [normal_graph(5, 2, seed=seed) for seed in range(4)]
    graphs[2].w_in[3, 0] = np.nan
    for call in (topology.analyze_graphs, topology.merge_trees):
        with pytest.raises(ValueError, match=r"graph 2: w_in must be finite; got nan at \[3, 0\]"):
            call(graphs, n_threads=n_threads)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_threads": 0}, ValueError, "n_threads must be at least 1; got 0"),
        ({"end": [1.0]}, ValueError, "end must be one for each of 2 graphs; got 1"),
        ({"max_span": 2}, ValueError, "max_span must be None without with_distances; got 2"),
        ({"max_span": 0, "with_distances": True}, ValueError, "max_span must be at least 1"),
        ({"max_span": 1.5, "with_distances": True}, TypeError, "max_span must be an integer"),
    ],
)
def test_wrong_options_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        topology.analyze_graphs([normal_graph(5, 2)] * 2, **options)


@pytest.mark.parametrize(
    "call", [topology.merge_trees, topology.analyze_graphs, topology.model_merge_tree]
)
@pytest.mark.parametrize(
    ("n_threads", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_threads_are_checked_where_there_is_nothing_to_do(
    call: Any, n_threads: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match="n_threads must be"):
        call([], n_threads=n_threads)


def test_what_python_refuses_names_the_graph_too() -> None:
    good = normal_graph(3, 2)
    with pytest.raises(TypeError, match="graph 1: neurons must be integers"):
        topology.merge_trees([good, good._replace(neurons=np.ones((3, 2)))])  # type: ignore[arg-type]
