from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from dkn_engine import _native, topology
from dkn_engine.topology import MergeTree
from tests.support import topology_oracle as reference
from tests.support.graphs import MakeGraph, normal_graph, partition, tied_distances, tied_graph


def assert_same(found: MergeTree, expected: MergeTree) -> None:
    assert found.n == expected.n
    for name in ("children", "heights", "sizes"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name, strict=True)


def kruskal(distances: NDArray[np.floating]) -> MergeTree:
    n = len(distances)
    pairs = np.stack(np.triu_indices(n, k=1), axis=1)
    values = distances[pairs[:, 0], pairs[:, 1]]
    # Shuffled: the order of the edges must not matter.
    order = np.random.default_rng(0).permutation(len(values))
    arrays = np.ascontiguousarray(pairs[order], np.int32), np.ascontiguousarray(values[order])
    return MergeTree(n, *_native.edge_tree(n, *arrays))


def heights_of_each_merge(tree: MergeTree) -> list[set[frozenset[int]]]:
    """Partition after all merges up to each distinct height."""
    last = np.searchsorted(tree.heights, np.unique(tree.heights), side="right")
    return [partition(tree.n, tree.children, k) for k in last]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 64])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algorithm", [topology.h0_persistence, kruskal], ids=["prim", "kruskal"])
def test_tree_equals_the_reference_with_ties_zeros_and_infinities(
    algorithm: Callable[[NDArray[np.float64]], MergeTree], n: int, seed: int
) -> None:
    distances = tied_distances(n, seed)
    assert_same(algorithm(distances), reference.h0_persistence(distances))


@pytest.mark.parametrize("seed", range(5))
def test_prim_and_kruskal_give_the_same_tree_on_two_hundred_points(seed: int) -> None:
    distances = tied_distances(200, seed)
    assert_same(topology.h0_persistence(distances), kruskal(distances))


@pytest.mark.parametrize("seed", range(5))
def test_heights_equal_scipys_single_linkage_in_each_connected_component(seed: int) -> None:
    graph = normal_graph(n=40, n_layers=40, seed=seed)
    distances = topology.distances(*graph)
    tree = topology.h0_persistence(distances)
    n_parts, labels = connected_components(np.isfinite(distances), directed=False)
    assert n_parts > 1
    assert len(tree.heights) == 40 - n_parts
    # Pairs of one layer are infinite within a component too; any longer finite number will do.
    finite = np.where(
        np.isfinite(distances), distances, distances[np.isfinite(distances)].max() + 1
    )
    heights = [
        linkage(squareform(finite[np.ix_(labels == part, labels == part)]), "single")[:, 2]
        for part in range(n_parts)
        if (labels == part).sum() > 1
    ]
    np.testing.assert_array_equal(tree.heights, np.sort(np.concatenate(heights)))


@pytest.mark.parametrize("seed", range(3))
def test_partitions_equal_scipys_flat_clusters(seed: int) -> None:
    graph = normal_graph(n=40, n_layers=3, seed=seed)
    distances = topology.distances(*graph)
    tree = topology.h0_persistence(distances)
    linked = linkage(squareform(np.minimum(distances, 1e9)), "single")
    for merges, height in enumerate(tree.heights, start=1):
        labels = fcluster(linked, height, "distance")
        expected = {frozenset(np.flatnonzero(labels == c).tolist()) for c in np.unique(labels)}
        assert partition(40, tree.children, merges) == expected


@pytest.mark.parametrize("make", [normal_graph, tied_graph])
@pytest.mark.parametrize("seed", range(5))
def test_adjacent_edges_alone_give_the_tree_of_all_spans(make: MakeGraph, seed: int) -> None:
    graph = make(30, 6, seed=seed)
    short = topology.merge_tree(*graph)
    full = topology.h0_persistence(topology.distances(*graph))
    np.testing.assert_array_equal(short.heights, full.heights)
    assert heights_of_each_merge(short) == heights_of_each_merge(full)


@pytest.mark.parametrize("make", [normal_graph, tied_graph])
def test_heights_and_partitions_do_not_depend_on_the_order_of_the_neurons(make: MakeGraph) -> None:
    graph = make(30, 5)
    order = np.random.default_rng(2).permutation(30)
    one, two = topology.merge_tree(*graph), topology.merge_tree(*graph.permuted(order))
    np.testing.assert_array_equal(one.heights, two.heights)
    renamed = [
        {frozenset(order[list(p)].tolist()) for p in ps} for ps in heights_of_each_merge(two)
    ]
    assert renamed == heights_of_each_merge(one)


def test_all_equal_distances_merge_in_the_order_of_the_pairs() -> None:
    tree = topology.h0_persistence(np.ones((4, 4)))
    assert tree.children.tolist() == [[0, 1], [2, 4], [3, 5]]
    assert tree.heights.tolist() == [1, 1, 1]
    assert tree.sizes.tolist() == [2, 3, 4]


@pytest.mark.parametrize("n", [0, 1, 5])
def test_all_infinite_distances_never_merge(n: int) -> None:
    tree = topology.h0_persistence(np.full((n, n), np.inf))
    assert (tree.n, len(tree.heights), tree.children.shape) == (n, 0, (0, 2))
    np.testing.assert_array_equal(topology.diagram(tree), [[0, np.inf]] * n or np.empty((0, 2)))


def test_zero_distances_merge_at_zero() -> None:
    tree = topology.h0_persistence([[0, 0, 2], [0, 0, 3], [2, 3, 0]])
    assert tree.heights.tolist() == [0, 2]


def test_diagram_has_a_death_a_merge_and_an_infinite_bar_a_component() -> None:
    distances = np.full((4, 4), np.inf)
    distances[0, 1] = distances[1, 0] = 2
    distances[1, 3] = distances[3, 1] = 1
    bars = topology.diagram(topology.h0_persistence(distances))
    np.testing.assert_array_equal(bars, [[0, 1], [0, 2], [0, np.inf], [0, np.inf]])


@pytest.mark.parametrize("n_threads", [1, 3])
def test_many_graphs_give_each_graphs_own_tree_in_order(n_threads: int) -> None:
    dtypes = [np.float32, np.float64, np.float32]
    graphs = [normal_graph(n, 4, dtype=dtypes[n % 3], seed=n) for n in range(12)]
    for graph, tree in zip(graphs, topology.merge_trees(graphs, n_threads), strict=True):
        assert_same(tree, topology.merge_tree(*graph))


def test_an_error_in_one_of_many_graphs_is_raised() -> None:
    good, bad = normal_graph(5, 2), normal_graph(5, 2)
    bad.w_in[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"w_in must be finite; got nan at \[3, 0\]"):
        topology.merge_trees([good, bad, good], n_threads=2)


@pytest.mark.parametrize(
    ("distances", "error", "message"),
    [
        (np.zeros((3, 4)), ValueError, r"distances must be square \[n, n\]; got \[3, 4\]"),
        (np.zeros(3), ValueError, r"distances must be square \[n, n\]; got \[3\]"),
        (np.float64(1), ValueError, r"distances must be square \[n, n\]; got \[\]"),
        ([[0, np.nan], [np.nan, 0]], ValueError, r"not nan; got nan at \[0, 1\]"),
        ([[0, 1], [2, 0]], ValueError, r"symmetric; got 1 at \[0, 1\] and 2 at \[1, 0\]"),
        ([[0, -1], [-1, 0]], ValueError, r"0 or more and not nan; got -1 at \[0, 1\]"),
        ([["0", "1"], ["1", "0"]], TypeError, "distances must be real numbers"),
        (np.zeros((2, 2), dtype=complex), TypeError, "got complex128"),
    ],
)
def test_wrong_distances_are_refused(distances: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        topology.h0_persistence(distances)


def test_nan_is_found_beyond_the_first_block() -> None:
    distances = np.ones((70, 70))
    distances[69, 40] = np.nan
    with pytest.raises(ValueError, match=r"nan at \[69, 40\]"):
        topology.h0_persistence(distances)


@pytest.mark.parametrize("n", [2, 4, 5, 63, 64, 65, 70, 131])
def test_prim_and_kruskal_agree_and_checks_see_everything_around_the_blocks(n: int) -> None:
    distances = tied_distances(n, seed=n)
    assert_same(topology.h0_persistence(distances), kruskal(distances))
    random = np.random.default_rng(n)
    for bad in (np.nan, -1.0, 7.0):
        for _ in range(20):
            i, j = random.choice(n, 2, replace=False)
            broken = distances.copy()
            broken[i, j] = bad
            with pytest.raises(ValueError, match="distances must be"):
                topology.h0_persistence(broken)


@pytest.mark.parametrize("n", [3, 9, 40, 101])
def test_negative_zero_is_zero_and_the_diagonal_is_not_read(n: int) -> None:
    distances = tied_distances(n, seed=1)
    expected = topology.h0_persistence(distances)
    signed = np.where(distances == 0, -0.0, distances)
    np.fill_diagonal(signed, np.nan)
    assert_same(topology.h0_persistence(signed), expected)


@pytest.mark.parametrize("seed", range(3))
def test_relabelled_points_have_the_same_diagram_and_the_same_partitions(seed: int) -> None:
    distances = tied_distances(60, seed)
    order = np.random.default_rng(seed).permutation(60)
    one = topology.h0_persistence(distances)
    two = topology.h0_persistence(distances[np.ix_(order, order)])
    np.testing.assert_array_equal(topology.diagram(two), topology.diagram(one))
    renamed = [
        {frozenset(order[list(p)].tolist()) for p in ps} for ps in heights_of_each_merge(two)
    ]
    assert renamed == heights_of_each_merge(one)


@pytest.mark.parametrize("seed", range(3))
def test_a_small_change_of_the_distances_moves_each_death_by_no_more(seed: int) -> None:
    # Stability of the diagram: for H0 the sorted deaths are 1-Lipschitz in the largest change.
    random = np.random.default_rng(seed)
    distances = np.triu(random.random((50, 50)), k=1)
    change = np.triu(random.uniform(-1e-3, 1e-3, (50, 50)), k=1)
    changed = np.maximum(distances + change, 0)
    deaths = [
        topology.diagram(topology.h0_persistence(upper + upper.T))[:-1, 1]
        for upper in (distances, changed)
    ]
    assert np.abs(deaths[1] - deaths[0]).max() <= np.abs(changed - distances).max()


def test_the_core_takes_no_other_dtype() -> None:
    with pytest.raises(TypeError):
        _native.dense_tree(np.zeros((2, 2), dtype=np.float32))


def nearly_symmetric(n: int, dtype: type, ulps: int, seed: int = 0) -> NDArray[np.floating]:
    """Distances of which some differ from their mirror images by so many last places."""
    rng = np.random.default_rng(seed)
    upper: NDArray[np.floating] = np.triu(rng.uniform(0.5, 4, (n, n)), 1).astype(dtype)
    upper[0, 2:5] = np.inf
    matrix = upper + upper.T
    up = rng.random((n, n)) < 0.5
    for _ in range(ulps):
        matrix = np.where(up & np.isfinite(matrix), np.nextafter(matrix, dtype(np.inf)), matrix)
    np.fill_diagonal(matrix, 0)
    result: NDArray[np.floating] = matrix.astype(dtype)
    return result


@pytest.mark.parametrize("ulps", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_larger_of_two_distances_that_differ_by_rounding_counts(dtype: type, ulps: int) -> None:
    matrix = nearly_symmetric(40, dtype, ulps)
    assert (matrix != matrix.T).any()
    larger = [
        [float(max(matrix[i, j], matrix[j, i])) for j in range(len(matrix))]
        for i in range(len(matrix))
    ]
    found, expected = topology.h0_persistence(matrix), topology.h0_persistence(np.array(larger))
    np.testing.assert_array_equal(found.children, expected.children)
    np.testing.assert_array_equal(found.heights, expected.heights)
    for turned in (matrix.T, np.asfortranarray(matrix)):
        np.testing.assert_array_equal(topology.h0_persistence(turned).heights, expected.heights)
    before = matrix.copy()
    topology.h0_persistence(matrix)
    np.testing.assert_array_equal(matrix, before)


def test_values_of_float32_in_a_wider_type_are_rounded_as_float32() -> None:
    narrow = nearly_symmetric(10, np.float32, 1)
    found, expected = map(topology.h0_persistence, (narrow.astype(np.float64), narrow))
    np.testing.assert_array_equal(found.children, expected.children)
    np.testing.assert_array_equal(found.heights, expected.heights)


def test_the_message_about_asymmetry_tells_the_two_values_apart() -> None:
    upper, lower = 0.1, 0.1 + 2**-50
    with pytest.raises(ValueError, match="symmetric") as raised:
        topology.h0_persistence([[0, upper], [lower, 0]])
    assert f"got {upper!r} at [0, 1] and {lower!r} at [1, 0]" in str(raised.value)
    with pytest.raises(ValueError, match=r"got -0\.30000000000000004 at \[0, 1\]"):
        topology.h0_persistence([[0.0, -0.1 - 0.2], [1.0, 0.0]])


def test_more_than_rounding_is_asymmetry() -> None:
    for dtype in (np.float32, np.float64):
        matrix = nearly_symmetric(10, dtype, 1)
        matrix[3, 7] = matrix[7, 3] * (1 + 8 * np.finfo(dtype).eps)
        with pytest.raises(ValueError, match=r"must be symmetric; got .* \[3, 7\] and .* \[7, 3\]"):
            topology.h0_persistence(matrix)
    # The last places are float32's only where every value is one of float32.
    wide = nearly_symmetric(10, np.float32, 1).astype(np.float64)
    wide[1, 2] = wide[2, 1] = 0.1
    for other in (np.inf, 0.0, -0.5, np.nan):
        one_sided = nearly_symmetric(10, np.float64, 1)
        one_sided[3, 7] = other
        with pytest.raises(ValueError, match="distances must be"):
            topology.h0_persistence(one_sided)
    with pytest.raises(ValueError, match="distances must be symmetric"):
        topology.h0_persistence(wide)
    with pytest.raises(ValueError, match="distances must be symmetric"):
        topology.h0_persistence(np.array([[0, 2], [3, 0]]))
