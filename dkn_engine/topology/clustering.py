"""From a fact's located neurons to its candidate components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dkn_engine.config import TopologyConfig
from dkn_engine.topology import released
from dkn_engine.topology.candidate_components import candidates
from dkn_engine.topology.graph import (
    adjacent_distances,
    h0_persistence,
    layer_tree,
    residual_distances,
)

if TYPE_CHECKING:
    from dkn_engine.types import Component


def find_candidates(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, config: TopologyConfig
) -> tuple[Component, ...]:
    """Candidate base degenerate components of one fact, as ``config.clustering`` says.

    ``config.direction``, ``input_weights``, ``fold_norm`` and ``by_activation`` are the caller's
    business: they say which rows are gathered, and what they are multiplied by. With
    ``clustering="ntc"`` and ``spans="shortest_path"`` ``max_span`` cannot change the tree and is
    not read.

    Arguments and errors as in :func:`distances`, neurons by descending score (an order that only
    the released procedures read).

    Returns:
        Components, each one's neurons sorted by (layer, index); disjoint, but for
        ``config.select="tree"``.

    Raises:
        ValueError: ``connections="influence"``, which no weights say; see
            :func:`candidates_by_distance`.
    """
    if config.connections == "influence":
        raise ValueError(
            "connections='influence' is measured in a model: candidates_by_distance takes distances"
        )
    if config.connections == "residual":
        matrix = residual_distances(neurons, w_out, w_in)
        return candidates_by_distance(neurons, matrix, config)
    if config.clustering == "released":
        return released.released_candidates(neurons, w_out, w_in, config)
    if config.spans == "shortest_path":
        tree, lengths = layer_tree(neurons, w_out, w_in)
        return candidates(neurons, tree, lengths, config)
    matrix = released.cluster_distances(neurons, w_out, w_in, config)
    tree = h0_persistence(np.where(matrix < released.FINITE_BELOW, matrix, np.inf))
    return candidates(neurons, tree, adjacent_distances(neurons, w_out, w_in), config)


def candidates_by_distance(
    neurons: ArrayLike, distances: ArrayLike, config: TopologyConfig
) -> tuple[Component, ...]:
    """Candidate components of neurons whose distances are given.

    Every finite distance counts for ``config.end="quantile"``, as those of adjacent layers do in
    :func:`find_candidates`.

    Args:
        neurons: int ``[n, 2]``, columns layer and index.
        distances: ``[n, n]``, as :func:`h0_persistence` takes them.
        config: as :func:`candidates` reads it.

    Raises:
        TypeError, ValueError: as those two.
    """
    tree = h0_persistence(distances)
    above = np.asarray(distances, dtype=np.float64)[np.triu_indices(tree.n, k=1)]
    return candidates(neurons, tree, above, config)
