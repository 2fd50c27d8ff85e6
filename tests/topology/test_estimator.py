"""The scikit-learn clusterer, against that library's own checks and the functions it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array
from scipy.spatial.distance import pdist, squareform
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, pairwise_distances
from sklearn.neighbors import kneighbors_graph
from sklearn.utils.estimator_checks import parametrize_with_checks

from dkn_engine import topology
from dkn_engine.topology import NTC
from tests.support import topology_oracle as reference

VECTORS = "the check gives vectors for distances"
OF_VECTORS = {
    "check_estimators_nan_inf": "distances may be infinite",
    "check_clustering": VECTORS,
    "check_positive_only_tag_during_fit": VECTORS,
}


def expected_failures(estimator: Any) -> dict[str, str]:
    return OF_VECTORS if estimator.metric == "precomputed" else {}


@parametrize_with_checks(  # type: ignore[untyped-decorator]  # scikit-learn has no types
    [NTC(), NTC(metric="precomputed")], expected_failed_checks=expected_failures
)
def test_scikit_learns_checks_of_a_clusterer_pass(estimator: Any, check: Any) -> None:
    check(estimator)


def blobs(seed: int = 0) -> tuple[Any, Any]:
    x, y = make_blobs(60, centers=[[0, 0], [30, 0], [0, 60]], random_state=seed)
    return x, y


@pytest.mark.parametrize("seed", range(3))
def test_groups_that_lie_apart_are_the_clusters(seed: int) -> None:
    x, y = blobs(seed)
    found = NTC(min_component_size=10).fit(x)
    assert found.labels_.dtype == np.int64
    assert adjusted_rand_score(found.labels_, y) == 1
    assert found.persistence_.shape == (3,)
    assert (np.diff(found.persistence_) <= 0).all()


def random_distances(n: int, seed: int) -> Any:
    """With ties, zeros and infinities."""
    random = np.random.default_rng(seed)
    upper = np.triu(random.integers(0, 12, (n, n)) / 4, k=1)
    matrix = upper + upper.T
    apart = np.triu(random.random((n, n)) < 0.6, k=1)
    matrix[apart | apart.T] = np.inf
    return matrix


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"min_component_size": 2, "select": "leaf", "allow_root": True},
    {"min_component_size": 2, "end": "quantile", "end_value": 0.5},
    {"min_component_size": 3, "end": "radius", "end_value": 1.5, "select": "root"},
    {"min_component_size": 2, "condense": False, "min_persistence": 0.25},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_the_candidates_of_a_run(seed: int, parameters: dict[str, Any]) -> None:
    """As the pipeline finds them in given distances, with no limit to their number."""
    from dkn_engine.config import TopologyConfig

    n, matrix = 40, random_distances(40, seed)
    points = np.column_stack([np.zeros(n, np.int32), np.arange(n, dtype=np.int32)])
    settings = {"min_component_size": 5, "end": "largest_merge", "end_value": None}
    settings |= {"allow_root": False, "select": "persistence", **parameters}
    config = TopologyConfig(max_candidates=n, **settings)  # type: ignore[arg-type]
    expected = topology.candidates_by_distance(points, matrix, config)
    found = NTC(metric="precomputed", **parameters).fit(matrix)
    assert found.persistence_.tolist() == [c.persistence for c in expected]
    for label, one in enumerate(expected):
        assert np.flatnonzero(found.labels_ == label).tolist() == one.neurons[:, 1].tolist()
    assert found.labels_.max(initial=-1) == len(expected) - 1


@pytest.mark.parametrize("halves", ["both", "upper", "lower"])
@pytest.mark.parametrize("seed", range(4))
def test_a_sparse_matrix_gives_what_the_dense_one_gives(seed: int, halves: str) -> None:
    """A stored 0 is a distance, what is not stored is none."""
    matrix = random_distances(50, seed)
    kept = (
        np.isfinite(matrix)
        & {
            "both": ~np.eye(50, dtype=bool),
            "upper": np.triu(np.ones((50, 50), bool), 1),
            "lower": np.tril(np.ones((50, 50), bool), -1),
        }[halves]
    )
    rows, columns = np.nonzero(kept)
    sparse = coo_array((matrix[rows, columns], (rows, columns)), shape=matrix.shape)
    parameters: dict[str, Any] = {"min_component_size": 2, "end": "quantile", "end_value": 0.7}
    dense = NTC(metric="precomputed", **parameters).fit(matrix)
    for given in (sparse, csr_array(sparse)):
        found = NTC(metric="precomputed", **parameters).fit(given)
        np.testing.assert_array_equal(found.labels_, dense.labels_)
        np.testing.assert_array_equal(found.persistence_, dense.persistence_)
        for name in ("children", "heights", "sizes"):
            one, other = getattr(found.merge_tree_, name), getattr(dense.merge_tree_, name)
            np.testing.assert_array_equal(one, other)


def test_a_graph_of_nearest_neighbours_is_one_of_distances() -> None:
    x, y = blobs()
    graph = kneighbors_graph(x, 8, mode="distance")
    assert (graph != graph.T).nnz
    found = NTC(metric="precomputed", min_component_size=10).fit_predict(graph)
    assert adjusted_rand_score(found, y) == 1


@pytest.mark.parametrize("metric", ["cityblock", "cosine", lambda a, b: abs(a - b).max()])
def test_vectors_are_clustered_by_the_metrics_of_scipy(metric: Any) -> None:
    x, _ = blobs()
    matrix = squareform(pdist(x, metric))
    found, given = NTC(metric=metric).fit(x), NTC(metric="precomputed").fit(matrix)
    np.testing.assert_array_equal(found.labels_, given.labels_)
    expected = reference.h0_persistence(matrix)
    np.testing.assert_array_equal(found.merge_tree_.heights, expected.heights)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sparse", [False, True])
def test_distances_may_be_off_by_cancellation(dtype: Any, sparse: bool) -> None:
    """Taken as scikit-learn takes them, whose mirrored entries differ."""
    x = blobs()[0].astype(dtype)
    distances = pairwise_distances(x)
    distances[0, 1] += dtype(1e-3 if dtype == np.float32 else 1e-7)
    assert (distances != distances.T).any()
    given = csr_array(distances) if sparse else distances
    found = NTC(metric="precomputed").fit(given)
    expected = reference.h0_persistence(np.maximum(distances, distances.T).astype(np.float64))
    np.testing.assert_array_equal(found.merge_tree_.heights, expected.heights)


def test_points_that_nothing_joins_are_in_no_cluster() -> None:
    matrix = np.full((4, 4), np.inf)
    found = clone(NTC(metric="precomputed")).fit(matrix)
    assert found.labels_.tolist() == [-1] * 4
    assert found.persistence_.shape == (0,)


SQUARE = np.array([[0.0, 1.0], [2.0, 0.0]])
REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "select": ({"select": "tree"}, SQUARE, "select must be 'persistence', 'leaf' or 'root'"),
    "end": ({"end": "radius"}, SQUARE, "end_value must be a positive radius"),
    "size": ({"min_component_size": 0}, SQUARE, "min_component_size must be"),
    "asymmetric": ({}, SQUARE, "symmetric"),
    "sparse asymmetric": ({}, csr_array(SQUARE), "symmetric"),
    "nan": ({}, np.array([[0.0, np.nan], [np.nan, 0.0]]), "nan"),
    "sparse nan": ({}, csr_array(SQUARE * np.nan), "0 or more"),
    "sparse negative": ({}, csr_array(-SQUARE), "0 or more"),
    "oblong": ({}, np.ones((3, 2)), r"\[n, n\]"),
    "sparse oblong": ({}, csr_array(np.ones((3, 2))), r"\[n, n\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_parameter_or_no_distance_is_refused(case: str) -> None:
    parameters, given, expected = REFUSED[case]
    with pytest.raises(ValueError, match=expected):
        NTC(metric="precomputed", **parameters).fit(given)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"[Uu]nknown"):
        NTC(metric="nothing").fit(blobs()[0])
