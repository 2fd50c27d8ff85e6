"""Quadrature of the path integral: fixed rules, and nested Lobatto rules with bisection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dkn_engine.attribution.paths import Ends, Paths, Points

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]

# Nodes on [0, 1] of nested Lobatto rules: of three points (Simpson's rule), of five (which are the
# Kronrod extension of the three), and the Kronrod extension of those to nine. Both ends are nodes:
# alpha = 1 is the clean row, paid once for all layers; neighbouring panels share theirs; and a
# panel's integral can be checked against the change of the objective. They are exact for
# polynomials up to degree 3, 7 and 13; the two ends alone, the trapezoid rule, up to 1.
_X9 = (
    np.sqrt((5 + 6 * np.sqrt(5 / 13)) / 11),
    np.sqrt(3 / 7),
    np.sqrt((5 - 6 * np.sqrt(5 / 13)) / 11),
)
NODES = np.array(sorted([-1.0, *(-x for x in _X9), 0.0, *_X9, 1.0])) / 2 + 0.5
LEVELS = {2: (0, 8), 3: (0, 4, 8), 5: (0, 2, 4, 6, 8), 9: tuple(range(9))}
_FINER = {2: 3, 3: 5, 5: 9}
_FIRST, _FIRST_WHERE_STEEP = 3, 5


def interpolatory_weights(nodes: Array) -> Array:
    """Weights that integrate the polynomial through ``nodes`` over [0, 1] exactly."""
    k = len(nodes)
    # Legendre polynomials on [-1, 1] keep the system well conditioned.
    matrix = np.polynomial.legendre.legvander(2 * nodes - 1, k - 1).T
    moments = np.zeros(k)
    moments[0] = 1.0
    return np.linalg.solve(matrix, moments).astype(np.float64)


WEIGHTS = {n: interpolatory_weights(NODES[list(index)]) for n, index in LEVELS.items()}


def _difference(n: int) -> Array:
    """Weights of the ``n``-point rule minus those of the next coarser one, on the same nodes."""
    coarser = next(m for m, finer in _FINER.items() if finer == n)
    weights = WEIGHTS[n].copy()
    weights[[LEVELS[n].index(i) for i in LEVELS[coarser]]] -= WEIGHTS[coarser]
    return weights


_DIFFERENCES = {n: _difference(n) for n in _FINER.values()}
# What float arithmetic leaves open, in steps of the model's dtype, by comparison with the model's
# own float64 run: of an activation (2 to 6 in tiny models, 11 in the demo model), and of a
# gradient, relative to the whole (4 to 20).
_ACTIVATION_STEPS = 12.0
_GRADIENT_STEPS = 12.0
# A rule's relative error is taken to be this often the square of its difference from the next
# coarser one, which is exact to half its degree; and no less than what completeness shows, where
# that holds. Calibrated by benchmarks/speed/calibration.py.
_SQUARES, _SQUARES_ALONE = 2.0, 10.0


def fixed_rule(name: str, n_steps: int) -> tuple[Array, Array]:
    """Nodes in [0, 1] and weights (summing to 1) of a fixed rule with ``n_steps`` points.

    Raises:
        ValueError: an unknown rule, or fewer points than it needs.
    """
    if name == "gauss_legendre":
        x, gauss = np.polynomial.legendre.leggauss(n_steps)
        return (x + 1) / 2, gauss / 2
    if name in {"trapezoid", "linspace"}:
        if n_steps < 2:
            raise ValueError(f"n_steps must be at least 2 for {name!r}; got {n_steps}")
        if name == "linspace":
            return np.linspace(0, 1, n_steps), np.full(n_steps, 1 / n_steps)
        w = np.full(n_steps, 1 / (n_steps - 1))
        w[[0, -1]] /= 2
        return np.linspace(0, 1, n_steps), w
    offset = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}
    if name not in offset:
        raise ValueError(f"quadrature must be a known fixed rule; got {name!r}")
    return (np.arange(n_steps) + offset[name]) / n_steps, np.full(n_steps, 1 / n_steps)


class Evaluator(Protocol):
    """The sweep or the general path."""

    def begin(self, points: Points) -> tuple[Tensor, Tensor, Ends]: ...

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]: ...


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
    store = _Store(evaluator, paths, keys)
    scores = np.empty((n, n_layers, paths.layout.width), dtype=store.dtype)
    for layer in range(n_layers):
        panels = [_Panel(c, layer, 0.0, 1.0, nodes) for c in range(n)]
        scores[:, layer] = store.integrate(panels, weights[None])[0]
    shape = (n, n_layers)
    points = np.full(shape, int(paid.sum()))
    delta = _delta(store, scores)
    return Integrals(scores, delta, points, np.full(shape, np.nan), np.ones(shape, bool))


@dataclass(eq=False)
class _Panel:
    """A piece [a, b] of one context's path in one layer, with the nodes of its finest rule."""

    context: int
    layer: int
    a: float
    b: float
    nodes: Array
    score: NDArray[np.floating] | None = None
    error: float = float("inf")

    @property
    def n_nodes(self) -> int:
        return len(self.nodes)

    @property
    def smooth(self) -> bool:
        """Whether nothing has yet shown that the integrand is not."""
        return self.n_nodes < 9 and self.b - self.a == 1.0

    @property
    def key(self) -> tuple[int, int]:
        return (self.context, self.layer)


def _panel(context: int, layer: int, a: float, b: float, n: int) -> _Panel:
    return _Panel(context, layer, a, b, a + (b - a) * NODES[list(LEVELS[n])])


_Key = tuple[int, int, float]


class _Store:
    """Every point evaluated so far: gradient and objective by (context, layer, alpha).

    Args:
        evaluator: the sweep or the general path.
        paths: where the points lie.
        keys: the first points, some of every context; alpha = 1 comes with them for nothing.
    """

    def __init__(self, evaluator: Evaluator, paths: Paths, keys: list[_Key]) -> None:
        self.evaluator, self.paths = evaluator, paths
        self.n, self.n_layers = paths.value.shape[:2]
        self.device = paths.value.device
        self.gradients: list[Tensor] = []
        self.values: dict[_Key, float] = {}
        self.index: dict[_Key, tuple[int, int]] = {}
        fresh = self._fresh(keys)
        gradients, values, self.ends = evaluator.begin(self._points(fresh))
        self._keep(fresh, gradients, values)
        self.dtype = np.float64 if self.ends.values.dtype == torch.float64 else np.float32
        self.end_values = self.ends.values.double().cpu().numpy()

    def pay(self, keys: list[_Key]) -> None:
        """Evaluate the points not seen before."""
        fresh = self._fresh(keys)
        if fresh:
            self._keep(fresh, *self.evaluator.evaluate(self._points(fresh)))

    def _fresh(self, keys: list[_Key]) -> list[_Key]:
        return [k for k in dict.fromkeys(keys) if k[2] < 1.0 and k not in self.index]

    def _points(self, keys: list[_Key]) -> Points:
        context, layer, alpha = zip(*keys, strict=True)
        return Points(
            torch.tensor(context, device=self.device),
            torch.tensor(layer, device=self.device),
            torch.tensor(alpha, dtype=torch.float64, device=self.device),
        )

    def _keep(self, fresh: list[_Key], gradients: Tensor, values: Tensor) -> None:
        batch = len(self.gradients)
        self.gradients.append(gradients)
        for i, (key, value) in enumerate(zip(fresh, values.double().tolist(), strict=True)):
            self.index[key] = (batch, i)
            self.values[key] = value

    def value(self, context: int, layer: int, alpha: float) -> float:
        if alpha >= 1.0:
            return float(self.end_values[context])
        return self.values[context, layer, alpha]

    def n_paid(self) -> NDArray[np.int64]:
        counts = np.zeros((self.n, self.n_layers), dtype=np.int64)
        for context, layer, _ in self.index:
            counts[context, layer] += 1
        return counts

    def _rows(self, keys: list[_Key]) -> Tensor:
        """Gradients ``[N, d]`` of known points, in the order of ``keys``."""
        out = self.ends.gradients.new_empty(len(keys), self.ends.gradients.shape[-1])
        places: dict[int, tuple[list[int], list[int]]] = {}
        for row, (context, layer, alpha) in enumerate(keys):
            if alpha >= 1.0:
                batch, source = -1, context * self.n_layers + layer
            else:
                batch, source = self.index[context, layer, alpha]
            rows, sources = places.setdefault(batch, ([], []))
            rows.append(row)
            sources.append(source)
        flat = self.ends.gradients.reshape(-1, self.ends.gradients.shape[-1])
        for batch, (rows, sources) in places.items():
            table = flat if batch < 0 else self.gradients[batch]
            out[torch.tensor(rows, device=out.device)] = table[
                torch.tensor(sources, device=out.device)
            ]
        return out

    def integrate(self, panels: list[_Panel], weights: Array) -> NDArray[np.floating]:
        """``[K, M, F]``: K rules over M panels of one layer, which share the nodes' pattern.

        Args:
            panels: M panels of equal layer and number of nodes.
            weights: ``[K, k]`` on [0, 1], for the k nodes of a panel.
        """
        k = panels[0].n_nodes
        keys = [(p.context, p.layer, float(a)) for p in panels for a in p.nodes]
        length = np.repeat([p.b - p.a for p in panels], k)
        w = np.tile(weights, (1, len(panels))) * length
        alpha = np.concatenate([p.nodes for p in panels])
        out = self.paths.scores(
            panels[0].layer,
            self._rows(keys),
            torch.from_numpy(alpha).to(self.device),
            torch.from_numpy(w).to(self.device, self.ends.values.dtype),
            torch.arange(len(panels), device=self.device).repeat_interleave(k),
            torch.tensor([p.context for p in panels], device=self.device),
        )
        found: NDArray[np.floating] = out.cpu().numpy().astype(self.dtype, copy=False)
        return found


def _delta(store: _Store, scores: NDArray[np.floating]) -> Array:
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
        _panel(c, layer, 0.0, 1.0, _first_nodes(layer, n_layers))
        for c in range(n)
        for layer in range(n_layers)
    ]
    store = _Store(evaluator, paths, _keys(panels))
    stuck = np.zeros((n, n_layers), dtype=bool)
    fresh = panels
    while fresh:
        store.pay(_keys(fresh))
        _measure(store, fresh, complete)
        total = _total(panels, (n, n_layers, paths.layout.width))
        goal = _goals(total, _rounding(paths, total), groups, weights, tolerance)
        worst = _worst(panels, groups, weights, goal, n_layers, stuck)
        fresh, paid = [], store.n_paid()
        for panel in worst:
            children = _refine(panel)
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


def _total(panels: list[_Panel], shape: tuple[int, int, int]) -> Array:
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


def _keys(panels: list[_Panel]) -> list[_Key]:
    return [(p.context, p.layer, float(a)) for p in panels for a in p.nodes]


def _measure(store: _Store, panels: list[_Panel], complete: bool) -> None:
    """Fill in score and error of new panels, one call a layer and rule.

    The difference from the next coarser rule is about that one's error. It is exact to half the
    degree, so where the integrand is smooth the relative error of the finer is about the square of
    its relative difference. That is believed of three and five points on a whole path; more are
    only asked for where it may not be smooth, and then the difference itself is the estimate.
    """
    squares = _SQUARES if complete else _SQUARES_ALONE
    batches: dict[tuple[int, int], list[_Panel]] = {}
    for p in panels:
        batches.setdefault((p.layer, p.n_nodes), []).append(p)
    for (_, n_nodes), batch in batches.items():
        both = store.integrate(batch, np.stack([WEIGHTS[n_nodes], _DIFFERENCES[n_nodes]]))
        for panel, score, difference in zip(batch, both[0], both[1], strict=True):
            panel.score = score
            panel.error, norm = (float(np.linalg.norm(x)) for x in (difference, score))
            if panel.smooth and norm > 0:
                panel.error *= min(1.0, squares * panel.error / norm)
            if complete:
                panel.error = max(panel.error, _completeness_error(store, panel))


def _completeness_error(store: _Store, panel: _Panel) -> float:
    """How far a panel's scores miss the objective's change, beyond rounding of the objective."""
    assert panel.score is not None
    start = store.value(panel.context, panel.layer, float(panel.nodes[0]))
    end = store.value(panel.context, panel.layer, float(panel.nodes[-1]))
    missed = abs(float(panel.score.sum(dtype=np.float64)) - (end - start))
    scale = max(abs(start), abs(end), 0.0 if 0 <= start <= 1 and 0 <= end <= 1 else 1.0)
    rounding = 64 * float(torch.finfo(store.ends.gradients.dtype).eps) * scale
    return missed if missed > rounding else 0.0


def _refine(panel: _Panel) -> list[_Panel]:
    if panel.n_nodes in _FINER:
        finer = _FINER[panel.n_nodes]
        return [_panel(panel.context, panel.layer, panel.a, panel.b, finer)]
    # The halves reuse the parent's end points and its middle node, bit for bit.
    middle = float(panel.nodes[4])
    halves = []
    for a, b in ((panel.a, middle), (middle, panel.b)):
        half = _panel(panel.context, panel.layer, a, b, 5)
        half.nodes[0], half.nodes[-1] = a, b
        halves.append(half)
    return halves


def _worst(
    panels: list[_Panel],
    groups: NDArray[np.int64],
    weights: Array,
    goals: dict[int, float],
    n_layers: int,
    stuck: NDArray[np.bool_],
) -> list[_Panel]:
    """The fewest panels whose removal brings every group's error estimate to its goal.

    Where paths that may have no more points are not at it by themselves, the others are to be.
    """
    chosen: list[_Panel] = []
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


def _layer_error(panels: list[_Panel], weights: Array, n_layers: int) -> Array:
    """Sums ``[L]`` of the panels' errors in a group's score."""
    total = np.zeros(n_layers)
    for p in panels:
        total[p.layer] += weights[p.context] * p.error
    return total


def _collect(
    store: _Store,
    panels: list[_Panel],
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
