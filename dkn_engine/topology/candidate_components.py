"""Candidate base degenerate components: persistent enough, disjoint, the most persistent first."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.config import TopologyConfig
from dkn_engine.neurons import as_neurons
from dkn_engine.topology.arrays import component, finite_quantile
from dkn_engine.topology.tree import ComponentForest, MergeTree, components
from dkn_engine.types import Component


def candidates(
    neurons: ArrayLike,
    tree: MergeTree,
    adjacent_distances: ArrayLike,
    config: TopologyConfig,
) -> tuple[Component, ...]:
    """Disjoint components of a fact's merge tree, by descending persistence.

    With ``config.select="tree"`` they are not disjoint: all nodes of at most
    ``config.max_component_size`` neurons that the root rule and tau_1 let through.

    Ties go to the earlier birth, then to more neurons, then to the smaller (layer, index).

    Args:
        neurons: int ``[n, 2]``, the points of the tree.
        tree: merge tree of those neurons.
        adjacent_distances: float64 1-D, read for ``config.end == "quantile"`` only.
        config: everything else; ``clustering``, ``spans`` and what shapes the weights are not
            read here.

    Raises:
        ValueError: another number of neurons than points of the tree, or a quantile above 1.
    """
    points = as_neurons(neurons)
    if len(points) != tree.n:
        raise ValueError(f"neurons must be [{tree.n}, 2], as in the tree; got {len(points)} rows")
    end = filtration_end(tree, adjacent_distances, config)
    if end is None:
        return ()
    forest = components(
        tree,
        min_component_size=config.min_component_size,
        condense=config.condense and config.select != "tree",
        end=end,
    )
    may = eligible(forest, config)
    if config.select == "tree":
        chosen = np.flatnonzero(may & (forest.sizes <= config.max_component_size)).tolist()
    else:
        chosen = select(forest, may, config.select, config.scale)
    found = [
        component(points[forest.members(c)], float(forest.births[c]), float(forest.deaths[c]))
        for c in chosen
    ]
    found.sort(key=lambda c: (-c.persistence, c.birth, -len(c.neurons), c.neurons.tolist()))
    return tuple(found if config.select == "tree" else found[: config.max_candidates])


def filtration_end(
    tree: MergeTree, adjacent_distances: ArrayLike, config: TopologyConfig
) -> float | None:
    """Where the filtration ends, in units of the distances; None if nothing says.

    Never the largest finite distance: 1 / |w| has a heavy tail.
    """
    if config.end == "largest_merge":
        return float(tree.heights[-1]) if len(tree.heights) else None
    if config.end_value is None:
        raise ValueError(f"end_value must be a number with end={config.end!r}; got None")
    if config.end == "radius":
        return config.end_value
    return finite_quantile(np.asarray(adjacent_distances, dtype=np.float64), config.end_value)


def eligible(forest: ComponentForest, config: TopologyConfig) -> NDArray[np.bool_]:
    """Which components may be candidates, bool ``[c]``: the root rule, then tau_1.

    Roots count where there are two or more of them or ``config.allow_root``. Persistence must be
    strictly above ``config.min_persistence``, or above that quantile of the persistence of the
    components of at least two neurons that the root rule lets through.
    """
    roots_count = config.allow_root or int(forest.is_root.sum()) >= 2
    allowed = np.asarray(~forest.is_root | roots_count)
    persistence = forest.persistence
    threshold = config.min_persistence
    if config.min_persistence_kind == "quantile":
        if threshold > 1:
            raise ValueError(f"min_persistence must be a quantile in [0, 1]; got {threshold}")
        pool = persistence[allowed & (forest.sizes >= 2)]
        threshold = float(np.quantile(pool, threshold)) if len(pool) else 0.0
    return np.asarray(allowed & (persistence > threshold))


def select(
    forest: ComponentForest,
    eligible: NDArray[np.bool_],
    method: Literal["persistence", "leaf", "root"],
    scale: Literal["linear", "log"] = "linear",
) -> list[int]:
    """A disjoint family of eligible components, ascending.

    ``persistence``: the family of greatest total ``death - birth`` (or ``log(death / birth)``),
    by a programme from the leaves up; on ties the larger component is taken. ``leaf``: those
    with no eligible component below; ``root``: those with none above.
    """
    if method == "root":
        return _topmost(forest, eligible)
    weights = forest.persistence
    if method == "leaf":  # Parents come later, so that no component outweighs one below it.
        weights = np.arange(len(eligible), 0.0, -1.0)
    elif scale == "log":
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = np.log(forest.deaths) - np.log(forest.births)
    return _topmost(forest, _best(forest, eligible, weights))


def _best(
    forest: ComponentForest, eligible: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Components that outweigh the best family strictly below them."""
    below: list[list[float]] = [[] for _ in weights]
    takes = np.zeros(len(weights), dtype=bool)
    for c, parent in enumerate(forest.parents):
        total = math.fsum(below[c])
        takes[c] = eligible[c] and weights[c] >= total
        if parent >= 0:
            below[parent].append(float(weights[c]) if takes[c] else total)
    return takes


def _topmost(forest: ComponentForest, marked: NDArray[np.bool_]) -> list[int]:
    """Marked components with no marked one above."""
    covered = np.zeros(len(marked), dtype=bool)
    for c in range(len(marked) - 1, -1, -1):
        parent = forest.parents[c]
        covered[c] = parent >= 0 and (covered[parent] or marked[parent])
    return [int(c) for c in np.flatnonzero(marked & ~covered)]
