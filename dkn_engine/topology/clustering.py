"""From a fact's located neurons to its candidate components."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dkn_engine.config import TopologyConfig
from dkn_engine.topology import released
from dkn_engine.topology.candidate_components import candidates
from dkn_engine.topology.graph import adjacent_distances, h0_persistence, layer_tree

if TYPE_CHECKING:
    from dkn_engine.types import Component


def find_candidates(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, config: TopologyConfig
) -> tuple[Component, ...]:
    """Candidate base degenerate components of one fact, as ``config.clustering`` says.

    ``config.direction``, ``input_weights`` and ``fold_norm`` are the caller's business: they say
    which rows are gathered. With ``clustering="ntc"`` and ``spans="shortest_path"``
    ``max_span`` cannot change the tree and is not read.

    Arguments and errors as in :func:`distances`, neurons by descending score (an order that only
    the released procedures read).

    Returns:
        Disjoint components, each one's neurons sorted by (layer, index).
    """
    if config.clustering == "released":
        return released.released_candidates(neurons, w_out, w_in, config)
    if config.spans == "shortest_path":
        tree, lengths = layer_tree(neurons, w_out, w_in)
        return candidates(neurons, tree, lengths, config)
    matrix = released.cluster_distances(neurons, w_out, w_in, config)
    tree = h0_persistence(np.where(matrix < released.FINITE_BELOW, matrix, np.inf))
    return candidates(neurons, tree, adjacent_distances(neurons, w_out, w_in), config)
