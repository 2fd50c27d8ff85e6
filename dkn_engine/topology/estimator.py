"""The merge tree's components as a scikit-learn clusterer, for points of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, issparse
from scipy.spatial.distance import pdist, squareform
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import validate_data

from dkn_engine import _native
from dkn_engine.config import TopologyConfig
from dkn_engine.topology.candidate_components import eligible, filtration_end, select
from dkn_engine.topology.graph import h0_persistence
from dkn_engine.topology.tree import ComponentForest, MergeTree, components


class NTC(ClusterMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Clusters that persist in the H0 filtration of a graph of distances (single linkage).

    The clustering of located neurons, on any points. All parameters but ``metric`` are settings of
    :class:`~dkn_engine.config.TopologyConfig`; the defaults are for points in space, where a run's
    own are for neurons in layers.

    Args:
        metric: ``precomputed``, or what scipy's ``pdist`` takes: a name or a function of two
            vectors.
        min_component_size: fewest points of a cluster; smaller parts continue the larger part's
            life.
        condense: False for raw branches of the tree.
        end, end_value: where the filtration ends: ``largest_merge``, a ``radius``, or a
            ``quantile`` of the finite distances.
        min_persistence: clusters persist strictly longer.
        allow_root: whether all points may be one cluster where they are connected.
        select: the disjoint clusters of greatest total ``persistence``, or those at a ``leaf`` or
            a ``root`` of the tree.

    Attributes:
        labels_: int64 ``[n]``, the cluster of each point, from the most persistent one on; -1 for
            points of none.
        persistence_: float64 ``[n_clusters]``, death minus birth, descending, in the unit of the
            distances.
        merge_tree_: the :class:`~dkn_engine.topology.MergeTree` of the points.

    Vectors and dense matrices take O(n^2) memory and time; a sparse matrix of m distances O(m)
    and O(m log m).
    """

    def __init__(
        self,
        *,
        metric: Any = "euclidean",
        min_component_size: int = 5,
        condense: bool = True,
        end: str = "largest_merge",
        end_value: float | None = None,
        min_persistence: float = 0.0,
        allow_root: bool = False,
        select: str = "persistence",
    ) -> None:
        self.metric = metric
        self.min_component_size = min_component_size
        self.condense = condense
        self.end = end
        self.end_value = end_value
        self.min_persistence = min_persistence
        self.allow_root = allow_root
        self.select = select

    def fit(self, X: Any, y: Any = None) -> NTC:  # as scikit-learn calls it
        """Cluster points.

        Args:
            X: vectors ``[n, d]``; with ``metric="precomputed"`` distances ``[n, n]``, symmetric and
                0 or more, where ``inf`` joins nothing, or a sparse matrix of them, whose absent
                entries are ``inf`` and of whose mirrored entries one is enough. The larger of
                two mirrored ones counts where they differ by cancellation: by the root of the
                type's precision, as a share of the largest distance.
            y: not read.

        Raises:
            UserError: a parameter that is none, a :class:`ValueError`.
            ValueError: X is not finite, or no distances.
        """
        config = self._config()
        given = self.metric == "precomputed"
        X = validate_data(
            self,
            X,
            accept_sparse="coo" if given else False,
            dtype=[np.float64, np.float32],
            ensure_all_finite=not given,
        )
        if issparse(X):
            tree, lengths = _sparse_tree(X)
        else:
            matrix = _mirrored(X) if given else squareform(pdist(X, self.metric))
            tree = h0_persistence(matrix)
            lengths = np.asarray(matrix[np.triu_indices(tree.n, k=1)], dtype=np.float64)
        self.merge_tree_ = tree
        self.labels_, self.persistence_ = _clusters(tree, lengths, config)
        return self

    def _config(self) -> TopologyConfig:
        settings = self.get_params(deep=False)
        del settings["metric"]
        config = TopologyConfig(**settings)
        if config.select == "tree":
            raise ValueError("select must be 'persistence', 'leaf' or 'root'; got 'tree'")
        return config

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = tags.input_tags.sparse = self.metric == "precomputed"
        return tags


def _clusters(
    tree: MergeTree, lengths: NDArray[np.float64], config: TopologyConfig
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels and persistence of the selected components."""
    labels = np.full(tree.n, -1, dtype=np.int64)
    end = filtration_end(tree, lengths, config)
    if end is None:  # nothing is joined
        return labels, np.empty(0)
    forest = components(
        tree, min_component_size=config.min_component_size, condense=config.condense, end=end
    )
    how: Any = config.select  # not "tree", which fit refuses
    chosen = _by_persistence(forest, select(forest, eligible(forest, config), how))
    for label, component in enumerate(chosen):
        labels[forest.members(component)] = label
    return labels, forest.persistence[chosen]


def _by_persistence(forest: ComponentForest, chosen: list[int]) -> list[int]:
    """Ties go to the earlier birth, to more points, to the first point."""
    lives = forest.persistence
    return sorted(
        chosen,
        key=lambda c: (-lives[c], forest.births[c], -forest.sizes[c], forest.members(c)[0]),
    )


def _cancellation(values: Any) -> float:
    """By how much distances may be off that were taken as ``|x|^2 + |y|^2 - 2 x y``.

    As scikit-learn takes them: squares off by the precision of the largest square, so distances,
    where they are small, by its root.
    """
    largest = float(np.max(values, where=np.isfinite(values), initial=0.0))
    return float(np.sqrt(np.finfo(values.dtype).eps)) * largest


def _mirrored(matrix: Any) -> Any:
    """A square matrix with the larger of any two mirrored values that differ by cancellation."""
    if matrix.shape[0] != matrix.shape[1]:
        return matrix  # refused below, in the tree's words
    with np.errstate(invalid="ignore"):  # inf - inf
        close = np.abs(matrix - matrix.T) <= _cancellation(matrix)
    return np.where(close, np.maximum(matrix, matrix.T), matrix)


def _sparse_tree(matrix: Any) -> tuple[MergeTree, NDArray[np.float64]]:
    """Merge tree of the stored distances, and those of them that join two points.

    Raises:
        ValueError: not square, negative or nan, or two mirrored entries that differ by more than
            cancellation.
    """
    matrix = coo_array(matrix, copy=True)
    matrix.sum_duplicates()
    n, other = matrix.shape
    if n != other:
        raise ValueError(f"distances must be [n, n]; got {[n, other]}")
    allowed = _cancellation(matrix.data)
    values = np.asarray(matrix.data, dtype=np.float64)
    if not (values >= 0).all():
        raise ValueError("distances must be 0 or more; got a negative one or nan")
    rows, columns = matrix.row.astype(np.int64), matrix.col.astype(np.int64)
    joined = (rows != columns) & np.isfinite(values)
    rows, columns, values = rows[joined], columns[joined], values[joined]
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    order = np.lexsort((values, high, low))
    low, high, values = low[order], high[order], values[order]
    twin = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    if (twin & (values[1:] - values[:-1] > allowed)).any():
        raise ValueError("distances must be symmetric; got two mirrored entries that differ")
    last = np.append(~twin, True)[: len(low)]  # of two, the larger
    edges = np.stack([low[last], high[last]], axis=1).astype(np.int32)
    return MergeTree(n, *_native.edge_tree(n, edges, values[last])), values[last]
