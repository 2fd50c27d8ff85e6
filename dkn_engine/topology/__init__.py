"""Neurological topology clustering: from located neurons to candidate components.

Distances between knowledge neurons, the H0 merge tree of their Vietoris-Rips filtration, and the
persistent, disjoint components of that tree. NumPy and the C++ core only; no torch. ``NTC`` is a
scikit-learn clusterer of any points, and imports that library when it is first used.
"""

from typing import TYPE_CHECKING, Any

from dkn_engine.topology.candidate_components import candidates
from dkn_engine.topology.clustering import candidates_by_distance, find_candidates
from dkn_engine.topology.graph import (
    ShortestPaths,
    adjacent_distances,
    distances,
    h0_persistence,
    merge_tree,
    residual_distances,
    shortest_paths,
    weight_distances,
)
from dkn_engine.topology.many_graphs import GraphTopology, analyze_graphs, merge_trees
from dkn_engine.topology.other_clusterers import CLUSTERERS, ClustererOptions, Located, cluster
from dkn_engine.topology.tree import ComponentForest, MergeTree, components, diagram
from dkn_engine.topology.whole_model import LayerPair, ModelTree, model_merge_tree

if TYPE_CHECKING:
    from dkn_engine.models.connections import layer_weights
    from dkn_engine.topology.estimator import NTC

__all__ = [
    "distances",
    "adjacent_distances",
    "h0_persistence",
    "merge_tree",
    "merge_trees",
    "analyze_graphs",
    "GraphTopology",
    "shortest_paths",
    "ShortestPaths",
    "residual_distances",
    "weight_distances",
    "model_merge_tree",
    "layer_weights",
    "ModelTree",
    "LayerPair",
    "MergeTree",
    "diagram",
    "components",
    "ComponentForest",
    "candidates",
    "find_candidates",
    "candidates_by_distance",
    "NTC",
    "cluster",
    "CLUSTERERS",
    "ClustererOptions",
    "Located",
]


def __getattr__(name: str) -> Any:
    if name == "layer_weights":  # the one that reads a model, which imports torch
        from dkn_engine.models.connections import layer_weights

        return layer_weights
    if name == "NTC":
        from dkn_engine.topology.estimator import NTC

        return NTC
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
