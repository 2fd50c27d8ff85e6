from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dkn_engine import topology
from dkn_engine.topology import ComponentForest, MergeTree
from tests.support import topology_oracle as reference
from tests.support.graphs import MakeGraph, normal_graph, tied_distances, tied_graph

INF = np.inf


def lives(forest: ComponentForest) -> list[tuple[float, float, int, list[int]]]:
    """Every component as birth, death, size and members; the numbering is left out."""
    return sorted(
        (birth, death, int(size), forest.members(c).tolist())
        for c, (birth, death, size) in enumerate(
            zip(forest.births.tolist(), forest.deaths.tolist(), forest.sizes, strict=True)
        )
    )


def line(*gaps: float) -> MergeTree:
    """Points on a line with these gaps between neighbours; inf cuts it."""
    where = np.concatenate([[0], np.cumsum(gaps)])
    n = len(where)
    distances = np.full((n, n), INF)
    for i, gap in enumerate(gaps):
        distances[i, i + 1] = distances[i + 1, i] = gap
    return topology.h0_persistence(distances)


@pytest.mark.parametrize("min_size", [1, 2, 3, 5])
@pytest.mark.parametrize("condense", [True, False], ids=["condensed", "raw"])
@pytest.mark.parametrize("end", [0.0, 1.0, 3.5, INF])
@pytest.mark.parametrize("seed", range(3))
def test_components_equal_the_reference(min_size: int, condense: bool, end: Any, seed: int) -> None:
    distances = tied_distances(14, seed)
    tree = topology.h0_persistence(distances)
    found = topology.components(tree, min_component_size=min_size, condense=condense, end=end)
    expected = reference.components(distances, min_size, condense, end)
    assert lives(found) == lives(expected)


@pytest.mark.parametrize("min_size", [1, 2, 4])
def test_components_of_a_layer_graph_equal_the_reference(min_size: int) -> None:
    graph = normal_graph(n=30, n_layers=4)
    tree = topology.merge_tree(*graph)
    end = float(np.quantile(tree.heights, 0.8))
    found = topology.components(tree, min_component_size=min_size, end=end)
    assert lives(found) == lives(
        reference.components(topology.distances(*graph), min_size, True, end)
    )


def test_a_pair_is_born_a_single_point_continues_it_and_a_pair_ends_it() -> None:
    # 0-1 at 1, 2 joins at 2, 3-4 at 3, all together at 4.
    tree = line(1, 2, 4, 3)
    forest = topology.components(tree)
    assert lives(forest) == [(1, 4, 3, [0, 1, 2]), (3, 4, 2, [3, 4]), (4, 4, 5, [0, 1, 2, 3, 4])]
    assert forest.is_root.tolist() == [False, False, True]
    assert forest.persistence.tolist() == [3, 1, 0]
    assert forest.labels.tolist() == [0, 0, 0, 1, 1]


def test_raw_branches_start_at_every_merge() -> None:
    forest = topology.components(line(1, 2, 4, 3), condense=False)
    assert lives(forest) == [
        (1, 2, 2, [0, 1]),
        (2, 4, 3, [0, 1, 2]),
        (3, 4, 2, [3, 4]),
        (4, 4, 5, [0, 1, 2, 3, 4]),
    ]


def test_two_parts_that_are_too_small_start_a_component_together() -> None:
    forest = topology.components(line(1, 3, 2), min_component_size=3)
    assert lives(forest) == [(3, 3, 4, [0, 1, 2, 3])]


def test_single_points_are_components_with_a_minimum_of_one() -> None:
    forest = topology.components(line(1, 2), min_component_size=1)
    assert lives(forest) == [
        (0, 1, 1, [0]),
        (0, 1, 1, [1]),
        (0, 2, 1, [2]),
        (1, 2, 2, [0, 1]),
        (2, 2, 3, [0, 1, 2]),
    ]


def test_merges_above_the_end_never_happen() -> None:
    forest = topology.components(line(1, 5, 2), end=3)
    assert lives(forest) == [(1, 3, 2, [0, 1]), (2, 3, 2, [2, 3])]
    assert forest.is_root.all()


def test_a_merge_at_the_end_still_happens() -> None:
    assert lives(topology.components(line(1, 3, 2), end=3))[-1] == (3, 3, 4, [0, 1, 2, 3])


def test_the_end_defaults_to_the_largest_merge_of_the_forest() -> None:
    forest = topology.components(line(1, INF, 4))
    assert lives(forest) == [(1, 4, 2, [0, 1]), (4, 4, 2, [2, 3])]


def test_points_that_never_join_belong_to_no_component() -> None:
    forest = topology.components(line(INF, 1))
    assert forest.labels.tolist() == [-1, 0, 0]
    assert forest.members(0).tolist() == [1, 2]


def test_merges_of_one_height_are_one_merge() -> None:
    # 0-1 and 3-4 are pairs; 2 joins both at the height at which they meet.
    forest = topology.components(line(1, 2, 2, 1))
    assert lives(forest) == [(1, 2, 2, [0, 1]), (1, 2, 2, [3, 4]), (2, 2, 5, [0, 1, 2, 3, 4])]


@pytest.mark.parametrize("make", [normal_graph, tied_graph])
@pytest.mark.parametrize("condense", [True, False])
def test_components_do_not_depend_on_the_order_of_the_neurons(
    make: MakeGraph, condense: bool
) -> None:
    graph = make(40, 5)
    order = np.random.default_rng(3).permutation(40)
    inverse = np.argsort(order)
    one = topology.components(topology.merge_tree(*graph), condense=condense)
    two = topology.components(topology.merge_tree(*graph.permuted(order)), condense=condense)
    renamed = dataclasses.replace(two, labels=two.labels[inverse])
    assert lives(renamed) == lives(one)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_points_without_merges_have_no_components(n: int) -> None:
    forest = topology.components(topology.h0_persistence(np.full((n, n), INF)))
    assert len(forest.births) == 0
    assert forest.labels.tolist() == [-1] * n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heights": np.array([2.0, 1.0])}, "heights that ascend .* got 1 at merge 1"),
        ({"heights": np.array([np.nan, 1.0])}, "heights that ascend .* got nan at merge 0"),
        ({"children": np.array([[0, 1], [0, 2]], np.int32)}, "each used once; got 0 at merge 1"),
        ({"children": np.array([[0, 1], [2, 4]], np.int32)}, "older nodes.* got 4 at merge 1"),
        ({"sizes": np.array([2, 4], np.int32)}, "sums over children; got 4 at merge 1"),
        ({"sizes": np.array([2], np.int32)}, r"sizes must be \[m\].*got \[1\]"),
        ({"n": 2}, r"n must be from 3 to 2\*\*30; got 2"),
    ],
)
def test_what_is_not_a_merge_tree_is_refused(change: Any, message: str) -> None:
    tree = topology.h0_persistence([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
    with pytest.raises(ValueError, match=message):
        topology.components(dataclasses.replace(tree, **change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_component_size": 0}, "min_component_size must be at least 1; got 0"),
        ({"end": -1.0}, "end must be 0 or more; got -1"),
        ({"end": np.nan}, "end must be 0 or more; got nan"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology.components(line(1), **options)


def test_a_linkage_matrix_is_not_taken_for_a_tree() -> None:
    with pytest.raises(TypeError, match="tree must be a MergeTree; got ndarray"):
        topology.components(np.zeros((1, 4)))  # type: ignore[arg-type]
