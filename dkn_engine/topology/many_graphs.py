"""Topology of many graphs in one call, with threads over the graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine import _native
from dkn_engine.neurons import as_neurons
from dkn_engine.topology.arrays import as_span, as_threads, as_weights
from dkn_engine.topology.tree import ComponentForest, MergeTree, components

Graph = tuple[ArrayLike, ArrayLike, ArrayLike]
_Arrays = tuple[NDArray[np.int32], Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class GraphTopology:
    """What :func:`analyze_graphs` finds out about one graph.

    Attributes:
        tree: merge tree of the neurons.
        components: components of the tree, with births, deaths and persistence.
        adjacent_distances: float64 1-D, finite distances between neurons in adjacent layers.
        distances: float64 ``[n, n]``, or None if not asked for.
    """

    tree: MergeTree
    components: ComponentForest
    adjacent_distances: NDArray[np.float64]
    distances: NDArray[np.float64] | None


def merge_trees(graphs: Iterable[Graph], n_threads: int = 1) -> list[MergeTree]:
    """:func:`merge_tree` of many graphs, in their order, whatever the number of threads.

    Args:
        graphs: ``(neurons, w_out, w_in)`` of each, as :func:`distances` takes them.
        n_threads: threads over graphs, at least 1; the interpreter's lock is released.

    Raises:
        TypeError, ValueError: as :func:`distances`; the message names the graph.
    """
    n_threads = as_threads(n_threads)
    arrays = _as_graphs(graphs)
    trees = _by_core(arrays, lambda part: _native.layer_trees(part, n_threads))
    return [MergeTree(len(a[0]), *tree) for a, tree in zip(arrays, trees, strict=True)]


def analyze_graphs(
    graphs: Iterable[Graph],
    *,
    min_component_size: int = 2,
    condense: bool = True,
    end: float | Sequence[float | None] | None = None,
    with_distances: bool = False,
    max_span: int | None = None,
    n_threads: int = 1,
) -> list[GraphTopology]:
    """Merge tree, components and, if asked for, distances of many graphs, in their order.

    The same as :func:`merge_tree`, :func:`components`, :func:`adjacent_distances` and
    :func:`distances` of each graph, bit for bit, whatever the number of threads.

    Args:
        graphs: ``(neurons, w_out, w_in)`` of each, as :func:`distances` takes them; the numbers of
            neurons and the dtypes may differ.
        min_component_size, condense: as in :func:`components`.
        end: as in :func:`components`, for all graphs or one a graph.
        with_distances: also the matrices ``[n, n]``, 8 n^2 bytes each.
        max_span: most layers that a distance crosses; only with ``with_distances``.
        n_threads: threads over graphs, at least 1; the interpreter's lock is released.

    Raises:
        TypeError, ValueError: as those functions, the message names the graph; ``max_span``
            without ``with_distances``; another number of ends than of graphs.
    """
    if max_span is not None and not with_distances:
        raise ValueError(f"max_span must be None without with_distances; got {max_span}")
    limit, n_threads = as_span(max_span), as_threads(n_threads)
    arrays = _as_graphs(graphs)
    ends = _as_ends(end, len(arrays))
    graphs_of_core = _by_core(
        arrays, lambda part: _native.layer_graphs(part, with_distances, limit, n_threads)
    )
    analyzed = []
    for (points, *_), last, (tree_arrays, lengths, matrix) in zip(
        arrays, ends, graphs_of_core, strict=True
    ):
        tree = MergeTree(len(points), *tree_arrays)
        forest = components(
            tree, min_component_size=min_component_size, condense=condense, end=last
        )
        analyzed.append(GraphTopology(tree, forest, lengths, matrix if with_distances else None))
    return analyzed


def _as_graphs(graphs: Iterable[Graph]) -> list[_Arrays]:
    arrays: list[_Arrays] = []
    for g, graph in enumerate(graphs):
        try:
            neurons, w_out, w_in = graph
            arrays.append((as_neurons(neurons), *as_weights(w_out, w_in)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"graph {g}: {error}") from error
    return arrays


def _by_core(arrays: list[_Arrays], core: Callable[[list[_Arrays]], list[Any]]) -> list[Any]:
    """What the core makes of each graph.

    One call of the core holds one dtype, so that no float32 graph is copied for the sake of
    another.
    """
    made: dict[int, Any] = {}
    for dtype in (np.float32, np.float64):
        chosen = [g for g, (_, w_out, _) in enumerate(arrays) if w_out.dtype == dtype]
        made |= zip(chosen, core([arrays[g] for g in chosen]) if chosen else [], strict=True)
    return [made[g] for g in range(len(arrays))]


def _as_ends(end: float | Sequence[float | None] | None, n_graphs: int) -> list[float | None]:
    if end is None or isinstance(end, int | float):
        return [end] * n_graphs
    ends = list(end)
    if len(ends) != n_graphs:
        raise ValueError(f"end must be one for each of {n_graphs} graphs; got {len(ends)}")
    return ends
