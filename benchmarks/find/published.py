"""The published procedure from one fact to its clusters that cover for one another, restated.

The scores are those of :func:`benchmarks.speed.peers.released`. Distances between located neurons,
their clustering and the filter follow ``tests/support/published.py``, the plain form that a
test compares them with; here all weights between neurons are one product of matrices, which is
kinder to the procedure than its own loops.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed import peers
from dkn_engine.config import TopologyConfig
from dkn_engine.models.connections import connection_rows

UNREACHABLE, FINITE = 1000.0, 100.0

Clusters = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Settings:
    """The published values: left points, shares of the best score, of distances, of the answer."""

    n_steps: int = 20
    threshold: float = 0.2
    quantile: float = 0.2
    max_drop: float = 0.05


PUBLISHED = Settings()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the procedure says of a fact.

    Attributes:
        neurons: int32 ``[n, 2]``, (layer, index) by descending score.
        clusters: positions in ``neurons``, a cluster each.
        family: those clusters that the filter keeps.
    """

    neurons: NDArray[np.int32]
    clusters: Clusters
    family: Clusters


def published(case: peers.Case, settings: Settings = PUBLISHED) -> Outcome:
    """All stages for one fact with a single answer token; ``case.site`` must be ``pre``."""
    scores = peers.released(case, settings.n_steps, multiply_by="activation")
    return after_scores(case, scores, settings)


def after_scores(case: peers.Case, scores: np.ndarray, settings: Settings = PUBLISHED) -> Outcome:
    """The stages behind attribution: neurons, distances, clusters, filter."""
    neurons = located(scores, settings.threshold)
    clusters = clustered(distances(case, neurons), settings.quantile)
    family = filtered(case, neurons, clusters, settings.max_drop)
    return Outcome(neurons, clusters, family)


def located(scores: np.ndarray, threshold: float) -> NDArray[np.int32]:
    """Neurons above a share of the largest score, by descending score."""
    at = np.argwhere(scores > threshold * scores.max()).astype(np.int32)
    order = np.argsort(-scores[at[:, 0], at[:, 1]], kind="stable")
    return at[order]


def distances(case: peers.Case, neurons: NDArray[np.int32]) -> NDArray[np.float64]:
    """``[n, n]``: sums of |1/weight| along the ways that the procedure tries, at most three hops.

    Across two layers it goes through two neurons of the one between, in the order of their scores;
    across three through one in each.
    """
    config = TopologyConfig(direction="reversed" if case.layout.gated else "forward")
    w_out, w_in = connection_rows(case.layout, neurons, config)
    weights = w_out.astype(np.float64) @ w_in.astype(np.float64).T
    with np.errstate(divide="ignore"):
        hops = np.where(weights == 0, UNREACHABLE, np.abs(1 / weights))
    layer = neurons[:, 0]
    matrix = np.full(hops.shape, UNREACHABLE)
    np.fill_diagonal(matrix, 0.0)
    for a, b in zip(*np.nonzero(layer[:, None] < layer[None, :]), strict=True):
        matrix[a, b] = matrix[b, a] = _distance(hops, layer, a, b)
    return matrix


def _distance(hops: NDArray[np.float64], layer: NDArray[np.int32], a: int, b: int) -> float:
    span = layer[b] - layer[a]
    if span == 1:
        return float(hops[a, b])
    between = [np.flatnonzero(layer == l).tolist() for l in range(layer[a] + 1, layer[b])]
    ways: list[tuple[int, int]] = []
    if span == 2:
        ways = list(itertools.combinations(between[0], 2))
    elif span == 3:
        ways = [(p, q) for p in between[0] for q in between[1]]
    return min([UNREACHABLE, *(float(hops[a, p] + hops[p, q] + hops[q, b]) for p, q in ways)])


def clustered(matrix: NDArray[np.float64], quantile: float) -> Clusters:
    """Classes that die last: half of the edges below a quantile are joined, in order of length."""
    n = len(matrix)
    first, second = np.triu_indices(n, 1)
    lengths = matrix[first, second]
    finite = lengths[lengths < FINITE]
    if not len(finite):
        return []
    inside = np.flatnonzero(lengths < np.quantile(finite, quantile))
    edges = inside[np.argsort(lengths[inside], kind="stable")]
    if not len(edges):
        return []
    birth, root, rank = np.zeros(n), np.arange(n), np.zeros(n, dtype=int)
    for edge in edges[: len(edges) // 2]:
        pair = first[edge], second[edge]
        for vertex in pair:
            if (root == root[vertex]).sum() == 1:
                birth[vertex] = lengths[edge]
        stays, goes = root[pair[1]], root[pair[0]]
        if stays == goes:
            continue
        if rank[goes] > rank[stays]:
            stays, goes = goes, stays
        elif rank[goes] == rank[stays]:
            rank[stays] += 1
        root[root == goes] = stays
    last, least = lengths[edges[-1]], np.median(birth)
    members = [np.flatnonzero(root == r) for r in np.unique(root) if last - birth[r] > least]
    return [m for m in members if len(m) > 1]


@torch.no_grad()
def filtered(
    case: peers.Case, neurons: NDArray[np.int32], clusters: Clusters, max_drop: float
) -> Clusters:
    """Clusters, of two at least, whose suppression alone costs less than a share; a pass each."""
    if len(clusters) < 2:
        return []
    clean = suppressed(case, neurons[:0])
    left = [suppressed(case, neurons[members]) for members in clusters]
    return [m for m, p in zip(clusters, left, strict=True) if (clean - p) / clean < max_drop]


def suppressed(case: peers.Case, neurons: NDArray[np.int32]) -> float:
    """The answer's probability with neurons at 0 at the last position, all logits computed."""

    def zero(index: list[int]) -> object:
        def hook(_module: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            changed = args[0].clone()
            changed[:, -1, index] = 0
            return (changed,)

        return hook

    handles = [
        case.module(layer).register_forward_pre_hook(
            zero(neurons[neurons[:, 0] == layer, 1].tolist())  # type: ignore[arg-type]
        )
        for layer in np.unique(neurons[:, 0]).tolist()
    ]
    try:
        logits = case.model(input_ids=case.ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[0, -1].double().softmax(-1)[case.target])
