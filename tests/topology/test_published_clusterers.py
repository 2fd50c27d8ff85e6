"""The published clusterers' parameters: scipy's and scikit-learn's own calls on plain distances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.cluster import DBSCAN, KMeans
from sklearn.decomposition import PCA

from dkn_engine.config import Config
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.topology import ClustererOptions, Located, cluster
from tests.support.published import UNREACHABLE, distances, located
from tests.topology.test_released_parity import make, scores_of

CONFIG = replace(Config.released().topology, max_candidates=1000)
CASES = [(name, seed) for name in ("gpt2", "llama") for seed in range(6)]
Sets = set[frozenset[tuple[int, int]]]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[Located, list[Any], np.ndarray]:
    """What the package gets, and the neurons and distances of the published procedure."""
    name, seed = request.param
    model, neurons = make(name, "normal", seed), located(scores_of(seed))
    points = np.array(neurons, dtype=np.int32)
    rows = connection_rows(find_layout(model), points, CONFIG)
    options = ClustererOptions.published()
    given = Located(points, *rows, config=CONFIG, options=options)
    return given, neurons, np.array(distances(name, model, neurons))


def sets_of(given: Located, name: str) -> Sets:
    return {frozenset(map(tuple, c.neurons.tolist())) for c in cluster(name, given)}


def grouped(neurons: list[Any], labels: np.ndarray) -> Sets:
    """Sets of two neurons and more; -1 is noise."""
    parts: dict[int, set[Any]] = {}
    for neuron, label in zip(neurons, labels.tolist(), strict=True):
        if label != -1:
            parts.setdefault(label, set()).add(neuron)
    return {frozenset(p) for p in parts.values() if len(p) > 1}


def test_dbscan_at_the_median_distance_to_the_nearest(case: Any) -> None:
    given, neurons, matrix = case
    nearest = [min(row[row > 0]) for row in matrix]
    least = max(2, int(0.03 * len(neurons)))
    found = DBSCAN(
        eps=float(np.quantile(nearest, 0.5)), min_samples=least, metric="precomputed"
    ).fit_predict(matrix)
    assert sets_of(given, "dbscan") == grouped(neurons, found)


def test_the_hierarchical_cut_is_the_sentinel_and_gives_one_cluster(case: Any) -> None:
    given, neurons, matrix = case
    pairs = squareform(matrix)
    height = float(np.quantile(pairs, 0.7))
    assert height == UNREACHABLE
    found = fcluster(linkage(pairs, "average"), height, criterion="distance")
    expected = grouped(neurons, found)
    assert expected == {frozenset(neurons)}
    assert sets_of(given, "hierarchical") == expected


@pytest.mark.parametrize("n_layers", [4, 5, 6, 8, 12])
def test_the_hierarchical_cut_gives_one_cluster_where_few_pairs_are_reachable(
    n_layers: int,
) -> None:
    """In four layers only neurons of one layer are not reachable: fewer than three tenths."""
    rng = np.random.default_rng(n_layers)
    points = np.array([(layer, i) for layer in range(n_layers) for i in range(24 // n_layers)])
    w_out, w_in = rng.normal(size=(2, len(points), 16))
    config = replace(CONFIG, min_component_size=1)
    options = ClustererOptions.published()
    given = Located(points, w_out, w_in, config=config, options=options)
    pairs = given.matrix[np.triu_indices(len(points), k=1)]
    few = np.isfinite(pairs).sum() <= 0.7 * (len(pairs) - 1)
    assert few == (n_layers > 5)
    assert (len(cluster("hierarchical", given)) == 1) == few


def test_k_means_of_a_tenth_as_many_on_most_of_the_variance(case: Any) -> None:
    given, neurons, matrix = case
    explained = np.cumsum(PCA().fit(matrix).explained_variance_ratio_)
    n = int(np.argmax(explained >= 0.95)) + 1
    rows = PCA(n_components=n).fit_transform(matrix)
    k = max(2, int(0.1 * len(neurons)))
    found = KMeans(n_clusters=k, n_init=10, random_state=0).fit(rows).labels_
    assert sets_of(given, "kmeans") == grouped(neurons, found)


def test_the_cases_have_several_clusters_and_the_defaults_give_others() -> None:
    several = others = 0
    for name, seed in CASES:
        model = make(name, "normal", seed)
        points = np.array(located(scores_of(seed)), dtype=np.int32)
        rows = connection_rows(find_layout(model), points, CONFIG)
        published = Located(points, *rows, config=CONFIG, options=ClustererOptions.published())
        ours = replace(published, options=ClustererOptions())
        several += len(cluster("dbscan", published)) > 1
        others += sets_of(published, "dbscan") != sets_of(ours, "dbscan")
    assert several >= 3
    assert others >= 6
