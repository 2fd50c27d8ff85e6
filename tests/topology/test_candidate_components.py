from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from dkn_engine import topology
from dkn_engine.config import TopologyConfig
from dkn_engine.topology import ComponentForest, released
from dkn_engine.topology import candidate_components as selection
from tests.support import topology_oracle as reference
from tests.support.graphs import MakeGraph, normal_graph, tied_distances, tied_graph


def forest(*nodes: tuple[float, float, int]) -> ComponentForest:
    """Components from (birth, death, parent), two points each that have nothing below."""
    births, deaths, parents = zip(*nodes, strict=True)
    leaves = [c for c in range(len(nodes)) if c not in parents]
    labels = np.repeat(leaves, 2).astype(np.int32)
    bare = ComponentForest(
        np.array(births, float),
        np.array(deaths, float),
        np.zeros(len(nodes), np.int32),
        np.array(parents, np.int32),
        labels,
    )
    sizes = [len(bare.members(c)) for c in range(len(nodes))]
    return ComponentForest(
        bare.births, bare.deaths, np.array(sizes, np.int32), bare.parents, labels
    )


# Two pairs (persistence 3 and 1) meet at 4; their union lives to 6, meets a third pair, ends at 9.
NESTED = forest((1, 4, 2), (3, 4, 2), (4, 6, 4), (5, 6, 4), (6, 9, -1))
ALL = np.ones(5, dtype=bool)


def config(**changes: Any) -> TopologyConfig:
    return TopologyConfig(**{"end": "largest_merge", "end_value": None} | changes)


@pytest.mark.parametrize(
    ("method", "marked", "expected"),
    [
        ("leaf", [0, 1, 2, 3, 4], [0, 1, 3]),
        ("leaf", [1, 2, 4], [1]),
        ("root", [0, 1, 2, 3, 4], [4]),
        ("root", [0, 1, 2, 3], [2, 3]),
        ("root", [0, 2, 3], [2, 3]),
        # 3 + 1 > 2 below node 2; 4 + 1 > 3 below the root.
        ("persistence", [0, 1, 2, 3, 4], [0, 1, 3]),
        ("persistence", [1, 2, 3, 4], [4]),
        ("persistence", [1, 2, 3], [2, 3]),
        ("persistence", [], []),
    ],
)
def test_selected_family_on_a_small_forest(method: Any, marked: list[int], expected: Any) -> None:
    eligible = np.isin(np.arange(5), marked)
    assert selection.select(NESTED, eligible, method) == expected


def test_of_equal_totals_the_larger_component_is_taken() -> None:
    tied = forest((1, 2, 2), (1, 2, 2), (2, 4, -1))
    assert selection.select(tied, np.ones(3, dtype=bool), "persistence") == [2]


def test_the_log_scale_weighs_a_life_by_its_ratio() -> None:
    # Linear: 3 + 3 < 10. Log: 2 log(4 / 1) > log(14 / 4).
    tree = forest((1, 4, 2), (1, 4, 2), (4, 14, -1))
    everything = np.ones(3, dtype=bool)
    assert selection.select(tree, everything, "persistence", "linear") == [2]
    assert selection.select(tree, everything, "persistence", "log") == [0, 1]


def test_the_log_scale_prefers_births_at_zero() -> None:
    tree = forest((0, 1, 2), (0, 1, 2), (1, 1e9, -1))
    assert selection.select(tree, np.ones(3, dtype=bool), "persistence", "log") == [0, 1]


@pytest.mark.parametrize("min_size", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_persistence_family_has_the_greatest_total_of_all_families(
    min_size: int, seed: int
) -> None:
    distances = tied_distances(10, seed)
    found = topology.components(
        topology.h0_persistence(distances), min_component_size=min_size, end=6.0
    )
    eligible = np.random.default_rng(seed).random(len(found.births)) < 0.7
    eligible &= found.persistence > 0
    eligible[np.flatnonzero(eligible)[11:]] = False
    family = selection.select(found, eligible, "persistence")
    total = found.persistence[family].sum()
    assert total == reference.best_family(found, eligible, found.persistence)


@pytest.mark.parametrize("method", ["persistence", "leaf", "root"])
@pytest.mark.parametrize("make", [normal_graph, tied_graph])
def test_candidates_are_disjoint_sorted_and_cut_to_the_most_persistent(
    method: str, make: MakeGraph
) -> None:
    graph = make(60, 6)
    options = {"select": method, "end": "quantile", "end_value": 0.1}
    found = topology.find_candidates(*graph, config(**options, max_candidates=100))
    assert len(found) > 2
    for one, two in itertools.combinations(found, 2):
        assert not set(map(tuple, one.neurons)) & set(map(tuple, two.neurons))
    assert all(a.persistence >= b.persistence for a, b in itertools.pairwise(found))
    for component in found:
        assert component.neurons.dtype == np.int32
        assert component.neurons.tolist() == sorted(component.neurons.tolist())
        assert component.persistence == component.death - component.birth > 0
    fewer = topology.find_candidates(*graph, config(**options, max_candidates=2))
    assert [c.neurons.tolist() for c in fewer] == [c.neurons.tolist() for c in found[:2]]


@pytest.mark.parametrize("make", [normal_graph, tied_graph])
def test_candidates_do_not_depend_on_the_order_of_the_neurons(make: MakeGraph) -> None:
    graph = make(50, 5)
    order = np.random.default_rng(4).permutation(50)
    options = config(end="quantile", end_value=0.3)
    one = topology.find_candidates(*graph, options)
    two = topology.find_candidates(*graph.permuted(order), options)
    assert [(c.neurons.tolist(), c.birth, c.death) for c in one] == [
        (c.neurons.tolist(), c.birth, c.death) for c in two
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 7.0),
        ({"end": "radius", "end_value": 2.5}, 2.5),
        ({"end": "quantile", "end_value": 0.25}, 3.0),
        ({"end": "quantile", "end_value": 1.0}, 9.0),
    ],
)
def test_end_of_the_filtration(options: dict[str, Any], expected: Any) -> None:
    tree = topology.h0_persistence([[0, 7.0], [7.0, 0]])
    adjacent = [1.0, 3.0, 5.0, 7.0, 9.0, np.inf]
    assert selection.filtration_end(tree, adjacent, config(**options)) == expected


@pytest.mark.parametrize("end", ["largest_merge", "quantile"])
def test_without_edges_nothing_ends_and_nothing_is_found(end: Any) -> None:
    value = None if end == "largest_merge" else 0.5
    options = config(end=end, end_value=value)
    for n in (0, 1, 2):
        neurons = [[0, i] for i in range(n)]
        assert topology.find_candidates(neurons, np.ones((n, 3)), np.ones((n, 3)), options) == ()


@pytest.mark.parametrize(("allow_root", "expected"), [(True, 1), (False, 0)])
def test_a_lone_root_is_a_candidate_only_if_allowed(allow_root: bool, expected: Any) -> None:
    tree = topology.h0_persistence([[0, 1.0], [1.0, 0]])
    options = config(end="radius", end_value=2.0, allow_root=allow_root)
    found = topology.candidates([[0, 0], [1, 0]], tree, [1.0], options)
    assert len(found) == expected


def test_two_roots_are_candidates_without_being_allowed() -> None:
    distances = np.full((4, 4), np.inf)
    distances[0, 1] = distances[1, 0] = 1
    distances[2, 3] = distances[3, 2] = 3
    tree = topology.h0_persistence(distances)
    neurons = [[1, 5], [0, 9], [3, 2], [2, 2]]
    options = config(end="radius", end_value=4.0, allow_root=False)
    found = topology.candidates(neurons, tree, [], options)
    assert [c.neurons.tolist() for c in found] == [[[0, 9], [1, 5]], [[2, 2], [3, 2]]]
    assert [(c.birth, c.death, c.persistence) for c in found] == [(1, 4, 3), (3, 4, 1)]


def test_persistence_must_be_strictly_above_the_threshold() -> None:
    eligible = selection.eligible(NESTED, config(min_persistence=2.0))
    assert eligible.tolist() == [True, False, False, False, True]


def test_the_quantile_threshold_leaves_out_roots_that_are_not_allowed() -> None:
    # Persistences 3, 1, 2, 1 and the root's 3.
    options = {"min_persistence": 0.5, "min_persistence_kind": "quantile"}
    without = selection.eligible(NESTED, config(**options, allow_root=False))
    assert without.tolist() == [True, False, True, False, False]  # Median 1.5.
    allowed = selection.eligible(NESTED, config(**options, allow_root=True))
    assert allowed.tolist() == [True, False, False, False, True]  # Median 2.


def test_ties_go_to_the_earlier_birth_then_the_larger_then_the_lower_layer() -> None:
    distances = np.full((9, 9), np.inf)
    for i, j in [(0, 1), (2, 3), (4, 5), (5, 6)]:
        distances[i, j] = distances[j, i] = 1
    distances[7, 8] = distances[8, 7] = 0.5
    neurons = [[8, 0], [9, 0], [2, 0], [3, 0], [5, 0], [6, 0], [7, 0], [0, 0], [1, 0]]
    tree = topology.h0_persistence(distances)
    found = topology.candidates(neurons, tree, [], config(end="radius", end_value=2.0))
    assert [c.neurons[0].tolist() for c in found] == [[0, 0], [5, 0], [2, 0], [8, 0]]


def test_another_number_of_neurons_than_points_is_refused() -> None:
    tree = topology.h0_persistence([[0, 1.0], [1.0, 0]])
    with pytest.raises(ValueError, match=r"neurons must be \[2, 2\].* got 1 rows"):
        topology.candidates([[0, 0]], tree, [], config())


def test_a_quantile_above_one_is_refused() -> None:
    options = config(min_persistence=1.5, min_persistence_kind="quantile")
    with pytest.raises(ValueError, match=r"min_persistence must be a quantile .* got 1.5"):
        selection.eligible(NESTED, options)


def test_released_spans_reach_the_merge_tree() -> None:
    graph = normal_graph(n=30, n_layers=5)
    found = topology.find_candidates(*graph, config(spans="released", max_span=3))
    matrix = released.enumerated_distances(*graph, max_span=3)
    tree = topology.h0_persistence(np.where(matrix < 100, matrix, np.inf))
    expected = topology.candidates(graph.neurons, tree, [], config())
    assert [c.neurons.tolist() for c in found] == [c.neurons.tolist() for c in expected]


def test_topology_works_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util, types\n"
        "root = importlib.util.find_spec('dkn_engine').submodule_search_locations\n"
        "package = types.ModuleType('dkn_engine'); package.__path__ = list(root)\n"
        "sys.modules['dkn_engine'] = package\n"
        "import dkn_engine.topology as topology\n"
        "assert len(topology.h0_persistence([[0, 1], [1, 0]]).heights) == 1\n"
        "heavy = {'scipy', 'numba', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
