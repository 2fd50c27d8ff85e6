"""Quadrature of the path integral: by a fixed rule, or refined where its error is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dkn_engine.attribution.path_points import (
    Evaluator,
    Panel,
    PathPoints,
    keys_of,
    panel_of,
    refined,
)
from dkn_engine.attribution.paths import Paths
from dkn_engine.attribution.quadrature_rules import DIFFERENCES, WEIGHTS, Array, fixed_rule

_FIRST, _FIRST_WHERE_STEEP = 3, 5
# What float arithmetic leaves open, in steps of the model's dtype, by comparison with the model's
# own float64 run: of an activation (2 to 6 in tiny models, 11 in the demo model), and of a
# gradient, relative to the whole (4 to 20).
_ACTIVATION_STEPS = 12.0
_GRADIENT_STEPS = 12.0
# A rule's relative error is taken to be this often the square of its difference from the next
# coarser one, which is exact to half its degree; and no less than what completeness shows, where
# that holds. Calibrated by benchmarks/speed/calibration.py.
_SQUARES, _SQUARES_ALONE = 2.0, 10.0


@dataclass(frozen=True, eq=False)
class Integrals:
    """Scores of every context and layer.

    Attributes:
        scores: ``[C, L, F]`` on the host; delta, n_points: ``[C, L]``.
        error: ``[C, L]``, estimated L2 error of ``scores[c, l]``: of the quadrature (NaN for fixed
            rules) and of rounding.
        converged: bool ``[C, L]``.
    """

    scores: NDArray[np.floating]
    delta: Array
    n_points: NDArray[np.int64]
    error: Array
    converged: NDArray[np.bool_]


def integrate_fixed(evaluator: Evaluator, paths: Paths, rule: str, n_steps: int) -> Integrals:
    """Integrate every context and layer by one fixed rule; alpha = 0 is added for the delta."""
    alphas, weights = fixed_rule(rule, n_steps)
    nodes = alphas if alphas[0] == 0 else np.concatenate([[0.0], alphas])
    weights = weights if alphas[0] == 0 else np.concatenate([[0.0], weights])
    paid = nodes < 1
    n, n_layers = paths.value.shape[:2]
    keys = [(c, layer, a) for c in range(n) for layer in range(n_layers) for a in nodes[paid]]
    store = PathPoints(evaluator, paths, keys)
    scores = np.empty((n, n_layers, paths.layout.width), dtype=store.dtype)
    for layer in range(n_layers):
        panels = [Panel(c, layer, 0.0, 1.0, nodes) for c in range(n)]
        scores[:, layer] = store.integrate(panels, weights[None])[0]
    shape = (n, n_layers)
    points = np.full(shape, int(paid.sum()))
    delta = _delta(store, scores)
    return Integrals(scores, delta, points, np.full(shape, np.nan), np.ones(shape, bool))


def _delta(store: PathPoints, scores: NDArray[np.floating]) -> Array:
    """Sum of scores minus the objective's change, ``[C, L]``."""
    start = np.array(
        [[store.value(c, layer, 0.0) for layer in range(store.n_layers)] for c in range(store.n)]
    )
    delta: Array = scores.sum(-1, dtype=np.float64) - (store.end_values[:, None] - start)
    return delta


def integrate_adaptive(
    evaluator: Evaluator,
    paths: Paths,
    groups: NDArray[np.int64],
    weights: Array,
    tolerance: float,
    max_points: int,
    *,
    complete: bool = True,
) -> Integrals:
    """Refine every layer until each group's estimated relative L2 error is within ``tolerance``.

    A panel's error is estimated by :func:`_measure`. A path begins with three points, of which the
    clean end is paid already; with five where its integrand is often steeper: in the first layer,
    whose residual stream is still short, so that the MLP's output turns all of it, and in the last
    quarter of the layers, where a point is also cheapest. A path that must improve gets five, then
    nine, then is bisected into panels of five.

    Rounding is estimated beside it (:func:`_rounding`). What it leaves of the tolerance is for the
    quadrature; where it leaves nothing, more points cannot help: the quadrature is brought within
    tolerance all the same, and the group has not converged.

    Args:
        evaluator: the sweep or the general path.
        paths: where the points lie.
        groups: ``[C]``, the fact of each context; its score is ``sum_c weights[c] * score[c]``.
        weights: ``[C]``.
        tolerance: on ``||error|| / ||scores||`` over all layers of a group.
        max_points: most paid points a context and layer.
        complete: whether scores are (x - x') times the gradient, so that completeness holds.
    """
    n, n_layers = paths.value.shape[:2]
    panels = [
        panel_of(c, layer, 0.0, 1.0, _first_nodes(layer, n_layers))
        for c in range(n)
        for layer in range(n_layers)
    ]
    store = PathPoints(evaluator, paths, keys_of(panels))
    stuck = np.zeros((n, n_layers), dtype=bool)
    fresh = panels
    while fresh:
        store.pay(keys_of(fresh))
        _measure(store, fresh, complete)
        total = _total(panels, (n, n_layers, paths.layout.width))
        goal = _goals(total, _rounding(paths, total), groups, weights, tolerance)
        worst = _worst(panels, groups, weights, goal, n_layers, stuck)
        fresh, paid = [], store.n_paid()
        for panel in worst:
            children = refined(panel)
            new = len({float(a) for c in children for a in c.nodes} - set(panel.nodes.tolist()))
            if paid[panel.key] + new > max_points:
                stuck[panel.key] = True
                continue
            paid[panel.key] += new
            panels.remove(panel)
            panels.extend(children)
            fresh.extend(children)
    return _collect(store, panels, stuck, groups, weights, tolerance)


def _first_nodes(layer: int, n_layers: int) -> int:
    """How many nodes a path begins with; see :func:`integrate_adaptive`."""
    steep = layer == 0 or 4 * layer >= 3 * n_layers - 2
    return _FIRST_WHERE_STEEP if steep else _FIRST


def _total(panels: list[Panel], shape: tuple[int, int, int]) -> Array:
    """Scores ``[C, L, F]``, summed over the panels of each path."""
    total = np.zeros(shape)
    for p in panels:
        assert p.score is not None
        total[p.key] += p.score
    return total


def _rounding(paths: Paths, total: Array) -> Array:
    """Estimated L2 error ``[C, L]`` of scores ``[C, L, F]`` that comes from rounding.

    A score is (x - x') times a mean gradient g. Both activations carry rounding of their own size,
    which their difference keeps: ``|x| g`` steps, much of the score where x' is close to x, as in
    long prompts of which one token is masked. And g comes from a backward pass, with some steps of
    the score itself.
    """
    eps = float(torch.finfo(paths.dtype).eps)
    activations = _ACTIVATION_STEPS * np.linalg.norm(paths.magnification() * total, axis=-1)
    found: Array = eps * (activations + _GRADIENT_STEPS * np.linalg.norm(total, axis=-1))
    return found


def _goals(
    total: Array, rounding: Array, groups: NDArray[np.int64], weights: Array, tolerance: float
) -> dict[int, float]:
    """Of each group, what the L2 error of its quadrature may be; not finite where scores are not.

    Rounding and the quadrature's error have nothing to do with one another, so squares add.
    """
    goals = {}
    for group in np.unique(groups):
        mine = groups == group
        allowed = tolerance * float(np.linalg.norm(np.tensordot(weights[mine], total[mine], 1)))
        rounded = float(np.linalg.norm(weights[mine] @ rounding[mine]))
        goals[int(group)] = np.sqrt(allowed**2 - rounded**2) if rounded < allowed else allowed
    return goals


def _measure(store: PathPoints, panels: list[Panel], complete: bool) -> None:
    """Fill in score and error of new panels, one call a layer and rule.

    The difference from the next coarser rule is about that one's error. It is exact to half the
    degree, so where the integrand is smooth the relative error of the finer is about the square of
    its relative difference. That is believed of three and five points on a whole path; more are
    only asked for where it may not be smooth, and then the difference itself is the estimate.
    """
    squares = _SQUARES if complete else _SQUARES_ALONE
    batches: dict[tuple[int, int], list[Panel]] = {}
    for p in panels:
        batches.setdefault((p.layer, p.n_nodes), []).append(p)
    for (_, n_nodes), batch in batches.items():
        both = store.integrate(batch, np.stack([WEIGHTS[n_nodes], DIFFERENCES[n_nodes]]))
        for panel, score, difference in zip(batch, both[0], both[1], strict=True):
            panel.score = score
            panel.error, norm = (float(np.linalg.norm(x)) for x in (difference, score))
            if panel.smooth and norm > 0:
                panel.error *= min(1.0, squares * panel.error / norm)
            if complete:
                panel.error = max(panel.error, _completeness_error(store, panel))


def _completeness_error(store: PathPoints, panel: Panel) -> float:
    """How far a panel's scores miss the objective's change, beyond rounding of the objective."""
    assert panel.score is not None
    start = store.value(panel.context, panel.layer, float(panel.nodes[0]))
    end = store.value(panel.context, panel.layer, float(panel.nodes[-1]))
    missed = abs(float(panel.score.sum(dtype=np.float64)) - (end - start))
    scale = max(abs(start), abs(end), 0.0 if 0 <= start <= 1 and 0 <= end <= 1 else 1.0)
    rounding = 64 * float(torch.finfo(store.ends.gradients.dtype).eps) * scale
    return missed if missed > rounding else 0.0


def _worst(
    panels: list[Panel],
    groups: NDArray[np.int64],
    weights: Array,
    goals: dict[int, float],
    n_layers: int,
    stuck: NDArray[np.bool_],
) -> list[Panel]:
    """The fewest panels whose removal brings every group's error estimate to its goal.

    Where paths that may have no more points are not at it by themselves, the others are to be.
    """
    chosen: list[Panel] = []
    for group in np.unique(groups):
        mine = [p for p in panels if groups[p.context] == group]
        goal = goals[int(group)]
        if not np.isfinite(goal):
            continue  # more points will not mend NaN
        layer_error = _layer_error([p for p in mine if stuck[p.key]], weights, n_layers)
        if np.linalg.norm(layer_error) > goal:
            layer_error[:] = 0
        mine = [p for p in mine if not stuck[p.key]]
        layer_error += _layer_error(mine, weights, n_layers)
        mine.sort(key=lambda p: (-weights[p.context] * p.error, p.layer, p.context, p.a))
        for p in mine:
            if np.linalg.norm(layer_error) <= goal:
                break
            layer_error[p.layer] = max(0.0, layer_error[p.layer] - weights[p.context] * p.error)
            chosen.append(p)
    return [p for p in chosen if p.error > 0]


def _layer_error(panels: list[Panel], weights: Array, n_layers: int) -> Array:
    """Sums ``[L]`` of the panels' errors in a group's score."""
    total = np.zeros(n_layers)
    for p in panels:
        total[p.layer] += weights[p.context] * p.error
    return total


def _collect(
    store: PathPoints,
    panels: list[Panel],
    stuck: NDArray[np.bool_],
    groups: NDArray[np.int64],
    weights: Array,
    tolerance: float,
) -> Integrals:
    total = _total(panels, (store.n, store.n_layers, store.paths.layout.width))
    quadrature = np.zeros(stuck.shape)
    for p in panels:
        quadrature[p.key] += p.error
    rounding = _rounding(store.paths, total)
    error = np.hypot(quadrature, rounding)
    scores: NDArray[np.floating] = total.astype(store.dtype)
    converged = ~stuck & np.isfinite(error)
    for group in np.unique(groups):
        mine = groups == group
        allowed = tolerance * np.linalg.norm(np.tensordot(weights[mine], total[mine], 1))
        # A layer that ran out of points still counts as converged if its fact came within
        # tolerance; otherwise one that rounding alone keeps from an equal share of it does not.
        if np.linalg.norm(weights[mine] @ error[mine]) <= allowed:
            converged[mine] = True
        elif np.isfinite(allowed):
            converged[mine] &= weights[mine] @ rounding[mine] <= allowed / np.sqrt(store.n_layers)
    return Integrals(scores, _delta(store, scores), store.n_paid(), error, converged)
