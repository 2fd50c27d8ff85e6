"""Other clusterers against brute force over their definitions, and what all have in common."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dkn_engine.config import TopologyConfig
from dkn_engine.errors import UserError
from dkn_engine.topology import find_candidates
from dkn_engine.topology.other_clusterers import (
    CLUSTERERS,
    ClustererOptions,
    Located,
    cluster,
    of_labels,
)
from tests.support.graphs import LayerGraph, MakeGraph, normal_graph, tied_graph

ALL = list(CLUSTERERS)
MANY = TopologyConfig(max_candidates=1000)
Sets = set[frozenset[tuple[int, int]]]


def no_effect(sets: Any) -> np.ndarray:
    return np.ones(len(sets))


def located(graph: LayerGraph, **options: Any) -> Located:
    return Located(*graph, config=MANY, options=ClustererOptions(**options), probability=no_effect)


def sets_of(components: Any) -> Sets:
    return {frozenset((int(l), int(i)) for l, i in c.neurons) for c in components}


def named(graph: LayerGraph, parts: Any) -> Sets:
    """Sets of points as sets of neurons."""
    return {frozenset((int(l), int(i)) for l, i in graph.neurons[sorted(p)]) for p in parts}


def joined(points: Any, near: Any) -> list[frozenset[int]]:
    """Connected components by flooding."""
    left, parts = set(points), []
    while left:
        part, edge = set(), [min(left)]
        while edge:
            i = edge.pop()
            if i in left:
                left.remove(i)
                part.add(i)
                edge += [j for j in left if near(i, j)]
        parts.append(frozenset(part))
    return parts


@pytest.mark.parametrize("quantile", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("make", [normal_graph, tied_graph])
def test_dbscan_of_two_is_what_hangs_together_within_the_radius(make: Any, quantile: float) -> None:
    graph = make(40, 5)
    given = located(graph, dbscan_quantile=quantile, dbscan_min_samples=2)
    radius = given.radius(quantile)
    assert radius is not None
    parts = joined(range(40), lambda i, j: given.matrix[i, j] <= radius)
    found = cluster("dbscan", given)
    assert sets_of(found) == named(graph, [p for p in parts if len(p) >= 2])
    assert len(found) > 0


@pytest.mark.parametrize(("min_samples", "quantile"), [(3, 0.06), (4, 0.08)])
def test_dbscan_grows_from_core_neurons(min_samples: int, quantile: float) -> None:
    graph = normal_graph(60, 12, seed=2)
    given = located(graph, dbscan_quantile=quantile, dbscan_min_samples=min_samples)
    radius = given.radius(quantile)
    assert radius is not None
    near = given.matrix <= radius
    cores = [i for i in range(60) if near[i].sum() >= min_samples]  # itself included
    parts = joined(cores, lambda i, j: near[i, j])
    found = cluster("dbscan", given)
    assert len(found) == len(parts) > 1
    border = {}
    for neurons in sets_of(found):
        points = {i for i in range(60) if tuple(graph.neurons[i].tolist()) in neurons}
        own = [p for p in parts if p <= points]
        assert len(own) == 1
        for i in points - own[0]:  # a border neuron is in reach of a core of its cluster
            assert i not in cores
            assert any(near[i, j] for j in own[0])
            assert i not in border
            border[i] = own[0]
    reached = {i for i in range(60) if i not in cores and any(near[i, j] for j in cores)}
    assert set(border) == reached


def average_linkage(matrix: np.ndarray, height: float) -> list[frozenset[int]]:
    """Merge the two parts of the least mean distance while that is at most the height."""
    parts = [frozenset({i}) for i in range(len(matrix))]
    while len(parts) > 1:
        pairs = itertools.combinations(parts, 2)
        least, a, b = min(
            ((matrix[np.ix_(sorted(a), sorted(b))].mean(), a, b) for a, b in pairs),
            key=lambda found: found[0],
        )
        if least > height:
            break
        parts = [p for p in parts if p not in (a, b)] + [a | b]
    return parts


@pytest.mark.parametrize("far", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("quantile", [0.1, 0.6])
def test_hierarchical_is_average_linkage_cut_at_a_height(far: float, quantile: float) -> None:
    graph = normal_graph(25, 4, seed=1)
    given = located(graph, hierarchical_quantile=quantile, far_quantile=far)
    matrix, radius = given.finite_matrix(), given.radius(quantile)
    assert matrix is not None
    assert radius is not None
    parts = average_linkage(matrix, radius)
    found = cluster("hierarchical", given)
    assert sets_of(found) == named(graph, [p for p in parts if len(p) >= 2])
    assert len(found) > 0


@pytest.mark.parametrize("far", [0.3, 0.9, 1.0])
def test_unreachable_is_above_every_distance_that_is_kept(far: float) -> None:
    given = located(normal_graph(20, 4), far_quantile=far)
    upper = np.triu_indices(20, k=1)
    finite_matrix = given.finite_matrix()
    assert finite_matrix is not None
    before, after = given.matrix[upper], finite_matrix[upper]
    finite = np.isfinite(before)
    limit = np.quantile(before[finite], far)
    kept = before <= limit
    np.testing.assert_array_equal(after[kept], before[kept])
    np.testing.assert_array_equal(after[~kept], 2 * limit)
    assert (~kept).sum() > (~finite).sum() or far == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_hdbscan_of_single_neighbours_has_the_leaves_of_the_merge_tree(seed: int) -> None:
    """Two independent condensed trees of one filtration; there is no end that cuts it here."""
    graph = normal_graph(40, 4, seed=seed)
    ntc = TopologyConfig(
        end="largest_merge", end_value=None, allow_root=False, select="leaf", max_candidates=1000
    )
    expected = find_candidates(*graph, ntc)
    found = cluster("hdbscan", located(graph, hdbscan_min_samples=1, hdbscan_select="leaf"))
    assert sets_of(found) == sets_of(expected)
    assert len(found) > 1


def test_hdbscan_takes_graphs_apart_that_do_not_hang_together() -> None:
    one, other = normal_graph(20, 3), normal_graph(20, 3, seed=1)
    neurons = np.concatenate([one.neurons, other.neurons + np.array([7, 0], dtype=np.int32)])
    both = LayerGraph(
        neurons,
        np.concatenate([one.w_out, other.w_out]),
        np.concatenate([one.w_in, other.w_in]),
    )
    found = sets_of(cluster("hdbscan", located(both)))
    assert all(len({layer >= 7 for layer, _ in part}) == 1 for part in found)
    parts = {layer >= 7 for part in found for layer, _ in part}
    assert parts == {False, True}


def test_hdbscan_with_more_neighbours_than_a_neuron_has() -> None:
    # A chain: no neuron has more than two at a finite distance and adjacent ones are one away.
    neurons = np.array([[l, 0] for l in range(4)], dtype=np.int32)
    given = located(LayerGraph(neurons, np.ones((4, 1)), np.ones((4, 1))), hdbscan_min_samples=3)
    assert sets_of(cluster("hdbscan", given)) <= {frozenset((l, 0) for l in range(4))}


def star(n: int) -> LayerGraph:
    """Two sets in layers 0 and 1: strong weights within a set, weak ones across."""
    neurons = np.array([[l, i] for l in (0, 1) for i in range(2 * n)], dtype=np.int32)
    side = (neurons[:, 1] >= n).astype(int)
    w = np.eye(2)[side] + 0.01
    return LayerGraph(neurons, w, w)


def test_kmeans_finds_groups_that_are_far_apart() -> None:
    graph = star(6)
    found = cluster("kmeans", located(graph, kmeans_clusters=2, far_quantile=1.0))
    # Rows of distances tell both the set and the layer; two of the four groups go together.
    groups = [
        frozenset(i for i in range(24) if (i // 12, i % 12 // 6) == g)
        for g in itertools.product((0, 1), repeat=2)
    ]
    assert len(found) == 2
    for part in sets_of(found):
        for group in named(graph, groups):
            assert group <= part or not group & part
    four = cluster("kmeans", located(graph, kmeans_clusters=4, far_quantile=1.0))
    assert sets_of(four) == named(graph, groups)


def test_kmeans_depends_on_nothing_but_its_seed() -> None:
    given = located(normal_graph(60, 5))
    once, again = cluster("kmeans", given), cluster("kmeans", given)
    assert [c.neurons.tolist() for c in once] == [c.neurons.tolist() for c in again]
    assert len(once) > 1


class Table:
    """Answer probabilities by which of the neurons are suppressed."""

    def __init__(self, single: dict[int, float], pair: dict[frozenset[int], float]) -> None:
        self.single, self.pair = single, pair
        self.asked: list[frozenset[int]] = []

    def __call__(self, sets: Any) -> np.ndarray:
        keys = [frozenset(int(i) for _, i in s) for s in sets]
        self.asked += keys
        return np.array([self.one(key) for key in keys])

    def one(self, key: frozenset[int]) -> float:
        if len(key) == 1:
            return self.single.get(next(iter(key)), 0.8)
        return 0.8 if not key else self.pair.get(key, 0.7)


def line(n: int) -> LayerGraph:
    neurons = np.array([[i % 3, i] for i in range(n)], dtype=np.int32)
    return LayerGraph(neurons, np.ones((n, 2)), np.ones((n, 2)))


def test_pairs_cover_for_each_other() -> None:
    table = Table(
        {3: 0.2},
        {
            frozenset({0, 1}): 0.5,  # leaves 0.62 of the weaker
            frozenset({1, 4}): 0.1,  # the strongest
            frozenset({2, 3}): 0.1,  # but 3 alone is missed
            frozenset({2, 4}): 0.6,  # leaves 0.75
        },
    )
    given = Located(*line(6), config=MANY, probability=table, min_alone=0.7, max_none=0.7)
    found = cluster("pairs", given)
    assert [c.neurons.tolist() for c in found] == [[[1, 1]], [[1, 4]], [[0, 0]]]
    assert frozenset({2, 3}) not in table.asked  # nothing is asked about hopeless pairs


def test_pairs_are_those_of_the_highest_scores() -> None:
    table = Table({}, {frozenset({0, 5}): 0.1, frozenset({0, 2}): 0.2})
    given = Located(*line(6), config=MANY, probability=table)
    short = replace(given, options=ClustererOptions(pair_neurons=3))
    assert [c.neurons[0, 1] for c in cluster("pairs", given)] == [0, 5, 2]
    assert [c.neurons[0, 1] for c in cluster("pairs", short)] == [0, 2]


def test_pairs_of_an_answer_without_probability_are_none() -> None:
    given = Located(*line(6), probability=lambda sets: np.zeros(len(sets)))
    assert cluster("pairs", given) == ()


def test_random_sets_are_as_large_as_those_of_ntc() -> None:
    given = located(normal_graph(60, 5))
    sizes = [len(c.neurons) for c in cluster("ntc", given)]
    draws = [cluster("random", replace(given, seed=seed)) for seed in (0, 1)]
    for draw in draws:
        assert [len(c.neurons) for c in draw] == sizes
    assert sets_of(draws[0]) != sets_of(draws[1])
    assert sets_of(draws[0]) == sets_of(cluster("random", given))
    assert len(sizes) > 1


@pytest.mark.parametrize("make", [normal_graph, tied_graph])
@pytest.mark.parametrize("name", ALL)
def test_components_are_disjoint_located_and_few_enough(name: str, make: MakeGraph) -> None:
    graph = make(60, 6)
    table = Table({}, {frozenset(p): 0.1 for p in itertools.combinations(range(60), 2)})
    given = Located(*graph, config=TopologyConfig(max_candidates=5), probability=table)
    found = cluster(name, given)
    assert 2 <= len(found) <= 5
    everyone = [tuple(n) for c in found for n in c.neurons.tolist()]
    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= {tuple(n) for n in graph.neurons.tolist()}
    for component in found:
        assert component.neurons.dtype == np.int32
        assert component.neurons.tolist() == sorted(component.neurons.tolist())
        assert len(component.neurons) >= (1 if name == "pairs" else 2)
        assert np.isnan(component.persistence) == (name != "ntc")


@pytest.mark.parametrize("name", ["dbscan", "hdbscan", "hierarchical", "kmeans"])
def test_components_come_by_their_first_neuron(name: str) -> None:
    graph = normal_graph(60, 6)
    place = {tuple(n): i for i, n in enumerate(graph.neurons.tolist())}
    first = [
        min(place[tuple(n)] for n in c.neurons.tolist()) for c in cluster(name, located(graph))
    ]
    assert first == sorted(first)
    assert len(first) > 1


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("name", ALL)
def test_neurons_of_one_layer_are_no_component(name: str, n: int) -> None:
    neurons = np.array([[3, i] for i in range(n)], dtype=np.int32).reshape(-1, 2)
    assert cluster(name, located(LayerGraph(neurons, np.ones((n, 2)), np.ones((n, 2))))) == ()


@pytest.mark.parametrize("name", ALL)
def test_two_neurons_are_at_most_one_component(name: str) -> None:
    graph = LayerGraph(np.array([[0, 0], [1, 0]], np.int32), np.ones((2, 1)), np.ones((2, 1)))
    found = sets_of(cluster(name, located(graph)))
    assert found <= {frozenset({(0, 0), (1, 0)})}
    # The neighbourhood and the first merge are those of the only edge.
    assert len(found) == (name in {"dbscan", "hierarchical"})


@pytest.mark.parametrize("name", ALL)
def test_zero_weights_connect_nothing(name: str) -> None:
    graph = normal_graph(10, 3)
    assert cluster(name, located(graph._replace(w_in=np.zeros((10, 5))))) == ()


def test_labels_become_components_without_noise_and_single_neurons() -> None:
    given = located(line(7))
    found = of_labels(given, np.array([5, -1, 0, 5, 2, 0, 5]))
    assert [c.neurons[:, 1].tolist() for c in found] == [[0, 3, 6], [2, 5]]


def test_an_unknown_clusterer_is_named() -> None:
    with pytest.raises(UserError, match=r"clusterer must be one of ntc, .*; got 'spectral'"):
        cluster("spectral", located(line(3)))


def test_pairs_need_a_probability() -> None:
    with pytest.raises(ValueError, match="probability must be given"):
        cluster("pairs", Located(*line(3)))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dbscan_quantile", 0.0, r"in \(0, 1\]"),
        ("hierarchical_quantile", 1.5, r"in \(0, 1\]"),
        ("far_quantile", -1.0, r"in \(0, 1\]"),
        ("dbscan_min_samples", 0, "an integer of at least 1"),
        ("hdbscan_min_cluster_size", 1, "an integer of at least 2"),
        ("kmeans_clusters", 0, "an integer of at least 1"),
        ("pair_neurons", 1, "an integer of at least 2"),
        ("hdbscan_select", "root", "one of 'leaf', 'eom'"),
        ("dbscan_radius", "far", "one of 'adjacent', 'nearest'"),
        ("hierarchical_cut", "all", "one of 'adjacent', 'pairs'"),
        ("dbscan_min_share", 1.5, r"in \[0, 1\]"),
        ("kmeans_share", -0.5, r"in \[0, 1\]"),
        ("kmeans_variance", 0.0, r"None or in \(0, 1\]"),
        ("kmeans_restarts", 0, "an integer of at least 1"),
        ("unreachable", 0.0, "None or positive"),
        ("unreachable", float("inf"), "None or positive"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be {expected}; got {value!r}"):
        ClustererOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("kmeans_clusters", 2.5, "an integer of at least 1"),
        ("kmeans_clusters", "3", "an integer of at least 1"),
        ("dbscan_min_samples", True, "an integer of at least 1"),
        ("dbscan_quantile", None, "a number"),
        ("far_quantile", "0.5", "a number"),
        ("unreachable", "1000", "a number or none"),
        ("kmeans_variance", "0.9", "a number or none"),
        ("hdbscan_select", 1, "one of 'leaf', 'eom'"),
    ],
)
def test_options_of_another_type_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=f"^{name} must be {expected}; got {value!r}$"):
        ClustererOptions(**{name: value})


def test_options_of_numpy_are_plain_numbers() -> None:
    options: dict[str, Any] = {
        "kmeans_clusters": np.int64(3),
        "dbscan_quantile": np.float64(0.5),
        "unreachable": np.int32(1000),
        "dbscan_radius": np.str_("nearest"),
    }
    given = ClustererOptions(**options)
    plain = ClustererOptions(
        kmeans_clusters=3, dbscan_quantile=0.5, unreachable=1000.0, dbscan_radius="nearest"
    )
    assert given == plain
    assert json.dumps(dataclasses.asdict(given)) == json.dumps(dataclasses.asdict(plain))
