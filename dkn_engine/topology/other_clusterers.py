"""Other ways to group located neurons, one interface for all: the paper's comparison.

A clusterer takes :class:`Located` neurons and returns disjoint components, the most important
first, at most ``config.max_candidates``. What they do not group is noise and left out. scipy,
scikit-learn and hdbscan do the clustering and are imported when used.

Most pairs of located neurons have no finite distance (the same layer, or no path), and none of
those libraries was made for that. How each clusterer takes infinity, and why:

=========== ====================================================================================
ntc         Infinity never merges: that is the definition.
dbscan      An infinite distance is no neighbourhood, like any other beyond the radius. Exact.
hdbscan     Connected components are clustered one by one, since no finite number says how far
            apart they are. Within one, unreachable pairs (of one layer) stay infinite: its spanning
            tree needs finite hops only, and with ``min_samples=1`` so do the core distances.
hierarchical, An average needs a number. Unreachable pairs get twice the largest distance that is
kmeans        kept, above every distance, so that no pair that is connected is further apart than
              one that is not; ``far_quantile`` says which distances are kept, since 1/|w| has a
              heavy tail and the largest would drown all others.
pairs, random No distances.
=========== ====================================================================================

Only ``ntc`` has births and deaths; those of the others are NaN.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import TopologyConfig
from dkn_engine.errors import UserError
from dkn_engine.files.sections import Section, count
from dkn_engine.neurons import as_neurons
from dkn_engine.topology.arrays import component, finite_quantile
from dkn_engine.topology.clustering import find_candidates
from dkn_engine.topology.graph import adjacent_distances, distances
from dkn_engine.topology.released import UNREACHABLE, cluster_distances
from dkn_engine.types import Component

Neurons = NDArray[np.int32]
Labels = NDArray[np.int64]
Probability = Callable[[Sequence[Neurons]], NDArray[np.float64]]
NOISE = -1


@dataclass(frozen=True, kw_only=True)
class ClustererOptions(Section):
    """The free parameters of the other clusterers.

    The paper gives none; :meth:`published` has those of its code. The defaults were chosen on the
    facts and by the rule that chose those of ``ntc`` (``benchmarks/science/clusterers_tuning.py``,
    ``benchmarks/results/clusterers_tuning.csv``).

    Attributes:
        dbscan_quantile: the radius, as a quantile of the lengths that ``dbscan_radius`` names.
        dbscan_radius: ``adjacent`` distances, or each neuron's distance to its ``nearest`` one.
        dbscan_min_samples: neurons within the radius, itself included, that make a core neuron.
        dbscan_min_share: a core neuron needs at least this share of all neurons, too.
        hdbscan_min_cluster_size: smallest cluster.
        hdbscan_min_samples: 1 makes distances what they are; more smooths them.
        hdbscan_select: ``leaf`` clusters or those of the largest excess of mass (``eom``).
        hierarchical_quantile: where the average-linkage tree is cut, as a quantile of the lengths
            that ``hierarchical_cut`` names.
        hierarchical_cut: ``adjacent`` distances, or those of all ``pairs``, unreachable ones, for
            which a number stands, among them.
        kmeans_clusters: k; ``kmeans_share``: at least this share of the number of neurons.
        kmeans_dimensions: principal components of the rows of distances that are kept.
        kmeans_variance: keep as many as explain this share of the variance instead.
        kmeans_restarts: of as many starts the best counts.
        far_quantile: of the finite distances; those above it count as unreachable
            (``hierarchical`` and ``kmeans``).
        unreachable: stands for every infinite distance in ``dbscan``, ``hierarchical`` and
            ``kmeans``, and all others stay (``far_quantile`` is not read); None: as the module
            says.
        pair_neurons: ``pairs`` looks at all pairs of so many neurons of the highest scores.
    """

    dbscan_quantile: float = 0.1
    dbscan_radius: Literal["adjacent", "nearest"] = "adjacent"
    dbscan_min_samples: int = count(2)
    dbscan_min_share: float = 0.0
    hdbscan_min_cluster_size: int = count(2, least=2)
    hdbscan_min_samples: int = count(1)
    hdbscan_select: Literal["leaf", "eom"] = "leaf"
    hierarchical_quantile: float = 0.1
    hierarchical_cut: Literal["adjacent", "pairs"] = "adjacent"
    kmeans_clusters: int = count(16)
    kmeans_share: float = 0.0
    kmeans_dimensions: int = count(8)
    kmeans_variance: float | None = None
    kmeans_restarts: int = count(10)
    far_quantile: float = 0.5
    unreachable: float | None = None
    pair_neurons: int = count(32, least=2)

    @classmethod
    def published(cls) -> ClustererOptions:
        """The parameters in the paper's code, for ``Located(config=Config.released().topology)``.

        Its hierarchical cut is at the 0.7 quantile of all m pairs. Where at most 0.7 (m - 1) of
        them are reachable, that is the number that stands for unreachable; no average is above
        that number, so all neurons are one cluster. So it is with neurons spread over many layers;
        in few layers more pairs are reachable, and there may be several clusters.
        """
        return cls(
            dbscan_quantile=0.5,
            dbscan_radius="nearest",
            dbscan_min_share=0.03,
            hierarchical_quantile=0.7,
            hierarchical_cut="pairs",
            kmeans_clusters=2,
            kmeans_share=0.1,
            kmeans_variance=0.95,
            unreachable=UNREACHABLE,
            pair_neurons=15,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dbscan_quantile", "hierarchical_quantile", "far_quantile"):
            self._require(name, 0 < getattr(self, name) <= 1, "in (0, 1]")
        for name in ("dbscan_min_share", "kmeans_share"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        share, number = self.kmeans_variance, self.unreachable
        self._require("kmeans_variance", share is None or 0 < share <= 1, "None or in (0, 1]")
        self._require("unreachable", number is None or 0 < number < np.inf, "None or positive")


@dataclass(frozen=True, eq=False)
class Located:
    """A fact's located neurons, as every clusterer takes them.

    Attributes:
        neurons: int ``[n, 2]`` (layer, index), distinct, by descending score.
        w_out, w_in: float32 or float64 ``[n, d]``, as in :func:`dkn_engine.topology.distances`.
        config: ``spans``, ``max_span``, ``min_component_size`` and ``max_candidates`` are read by
            all, everything else by ``ntc`` (and so ``random``) only.
        options: of the others.
        seed: of ``kmeans`` and ``random``.
        probability: the answer's probability with each of some sets of neurons suppressed;
            read by ``pairs`` only, which cannot do without.
        min_alone, max_none: tau_2 and tau_3 of the functional filter, read by ``pairs`` only.
    """

    neurons: ArrayLike
    w_out: ArrayLike
    w_in: ArrayLike
    config: TopologyConfig = field(default_factory=TopologyConfig)
    options: ClustererOptions = field(default_factory=ClustererOptions)
    seed: int = 0
    probability: Probability | None = None
    min_alone: float = 0.7
    max_none: float = 0.7

    @cached_property
    def points(self) -> Neurons:
        """The neurons, int32 ``[n, 2]``."""
        return as_neurons(self.neurons)

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """Distances ``[n, n]``; ``inf`` for unreachable pairs.

        With the released spans also for pairs as far apart as its number for unreachable.
        """
        if self.config.spans == "released":
            found = cluster_distances(self.points, self.w_out, self.w_in, self.config)
            return np.where(found < UNREACHABLE, found, np.inf)
        return distances(self.points, self.w_out, self.w_in, self.config.max_span)

    def radius(self, quantile: float) -> float | None:
        """A quantile of the finite adjacent distances, as for ``ntc``; None if there are none."""
        return finite_quantile(adjacent_distances(self.points, self.w_out, self.w_in), quantile)

    def finite_matrix(self) -> NDArray[np.float64] | None:
        """Distances with a number for what counts as unreachable; None if everything does.

        ``options.unreachable``, or twice the largest distance that is kept.
        """
        if self.options.unreachable is not None:
            return np.where(np.isfinite(self.matrix), self.matrix, self.options.unreachable)
        lengths = self.matrix[np.triu_indices(len(self.points), k=1)]
        limit = finite_quantile(lengths, self.options.far_quantile)
        if limit is None:
            return None
        return np.where(self.matrix <= limit, self.matrix, 2 * limit)


def cluster(name: str, located: Located) -> tuple[Component, ...]:
    """Disjoint components by a clusterer's name, at most ``located.config.max_candidates``.

    Components of ``ntc`` come by descending persistence, of ``pairs`` by strength, of all others
    by the highest score among their neurons, the only order that needs no notion of theirs.

    Raises:
        UserError: no clusterer of that name.
        TypeError, ValueError: neurons or weights as in :func:`dkn_engine.topology.distances`;
            ``pairs`` without a probability.
    """
    if name not in CLUSTERERS:
        raise UserError(f"clusterer must be one of {', '.join(CLUSTERERS)}; got {name!r}")
    return CLUSTERERS[name](located)[: located.config.max_candidates]


def of_labels(located: Located, labels: NDArray[np.integer]) -> tuple[Component, ...]:
    """Components from a label a neuron (-1: noise), by their first neuron.

    Labels with fewer than ``config.min_component_size`` neurons are noise too.
    """
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels.tolist()):
        if label != NOISE:
            members.setdefault(label, []).append(i)
    least = located.config.min_component_size
    return tuple(component(located.points[m]) for m in members.values() if len(m) >= least)


def _ntc(located: Located) -> tuple[Component, ...]:
    return find_candidates(located.points, located.w_out, located.w_in, located.config)


def _dbscan(located: Located) -> tuple[Component, ...]:
    """Density clusters at one radius (Ester et al. 1996)."""
    from sklearn.cluster import DBSCAN

    options, n = located.options, len(located.points)
    matrix = located.matrix
    if options.unreachable is not None:
        matrix = np.where(np.isfinite(matrix), matrix, options.unreachable)
    radius = located.radius(options.dbscan_quantile)
    if options.dbscan_radius == "nearest":
        radius = _nearest(matrix, options.dbscan_quantile)
    if radius is None:
        return ()
    # Whatever is beyond the radius is equally beyond it, so a finite stand-in changes nothing.
    near = np.where(matrix <= radius, matrix, 2 * radius)
    least = max(options.dbscan_min_samples, int(options.dbscan_min_share * n))
    found = DBSCAN(eps=radius, min_samples=least, metric="precomputed").fit_predict(near)
    return of_labels(located, found)


def _nearest(matrix: NDArray[np.float64], quantile: float) -> float | None:
    """A quantile of every neuron's distance to the one nearest to it; None if none has one."""
    others = np.where(np.eye(len(matrix), dtype=bool), np.inf, matrix)
    return finite_quantile(others.min(axis=1, initial=np.inf), quantile)


def _hdbscan(located: Located) -> tuple[Component, ...]:
    """Hierarchical density clusters (Campello et al. 2013), a connected component at a time.

    A connected component may be a cluster as a whole if there are others beside it.
    """
    from scipy.sparse.csgraph import connected_components

    matrix, labels = located.matrix, np.full(len(located.points), NOISE, dtype=np.int64)
    _, connected = connected_components(np.isfinite(matrix), directed=False)
    parts = [p for c in np.unique(connected) if len(p := np.flatnonzero(connected == c)) >= 2]
    for part in parts:
        found = _hdbscan_labels(matrix[np.ix_(part, part)], located.options, whole=len(parts) > 1)
        labels[part] = np.where(found == NOISE, NOISE, found + labels.max() + 1)
    return of_labels(located, labels)


def _hdbscan_labels(
    matrix: NDArray[np.float64], options: ClustererOptions, *, whole: bool
) -> Labels:
    from hdbscan import HDBSCAN

    if options.hdbscan_min_samples > 1:
        # A core distance may need more neighbours than a neuron has at a finite distance.
        finite = matrix[np.isfinite(matrix)]
        matrix = np.where(np.isfinite(matrix), matrix, 2 * finite.max())
    if len(matrix) < options.hdbscan_min_cluster_size:
        return np.full(len(matrix), NOISE, dtype=np.int64)
    found: Labels = HDBSCAN(
        min_cluster_size=options.hdbscan_min_cluster_size,
        min_samples=options.hdbscan_min_samples,
        metric="precomputed",
        algorithm="generic",
        cluster_selection_method=options.hdbscan_select,
        allow_single_cluster=whole,
    ).fit_predict(matrix)
    return found


def _hierarchical(located: Located) -> tuple[Component, ...]:
    """Average linkage, cut at a height."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    matrix = located.finite_matrix()
    height = located.radius(located.options.hierarchical_quantile)
    if matrix is None or height is None:
        return ()
    pairs = squareform(matrix, checks=False)
    if located.options.hierarchical_cut == "pairs":
        height = float(np.quantile(pairs, located.options.hierarchical_quantile))
    tree = linkage(pairs, "average")
    return of_labels(located, fcluster(tree, height, criterion="distance"))


def _kmeans(located: Located) -> tuple[Component, ...]:
    """k-means on the principal components of the rows of distances."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    matrix = located.finite_matrix()
    if matrix is None:
        return ()
    options = located.options
    pca = PCA(svd_solver="full").fit(matrix)
    n = min(options.kmeans_dimensions, len(matrix))
    if options.kmeans_variance is not None:
        explained = np.cumsum(pca.explained_variance_ratio_)
        n = int(np.argmax(explained >= options.kmeans_variance)) + 1
    rows = PCA(n_components=n, svd_solver="full").fit_transform(matrix)
    k = max(options.kmeans_clusters, int(options.kmeans_share * len(matrix)))
    k = min(k, len(np.unique(rows, axis=0)))
    means = KMeans(
        n_clusters=k,
        n_init=options.kmeans_restarts,
        random_state=operator.index(located.seed) % (1 << 32),
    )
    return of_labels(located, means.fit_predict(rows))


def _pairs(located: Located) -> tuple[Component, ...]:
    """Degenerate pairs of neurons (AMIG); see :mod:`dkn_engine.topology.amig_pairs`."""
    from dkn_engine.topology.amig_pairs import paired_neurons

    if located.probability is None:
        raise ValueError("probability must be given for the clusterer 'pairs'; got None")
    searched = located.points[: located.options.pair_neurons]
    found = paired_neurons(searched, located.probability, located.min_alone, located.max_none)
    return tuple(component(searched[[i]]) for i in found)


def _random(located: Located) -> tuple[Component, ...]:
    """Located neurons drawn into sets as large as those of ``ntc``, the control of them all."""
    sizes = [len(c.neurons) for c in _ntc(located)]
    # numpy takes no negative seeds.
    drawn = np.random.default_rng(operator.index(located.seed) % (1 << 64)).permutation(
        len(located.points)
    )
    parts = np.split(drawn, np.cumsum(sizes))[: len(sizes)]
    return tuple(component(located.points[part]) for part in parts)


CLUSTERERS: Mapping[str, Callable[[Located], tuple[Component, ...]]] = {
    "ntc": _ntc,
    "dbscan": _dbscan,
    "hdbscan": _hdbscan,
    "hierarchical": _hierarchical,
    "kmeans": _kmeans,
    "pairs": _pairs,
    "random": _random,
}
