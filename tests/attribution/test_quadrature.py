"""Quadrature on integrands with known integrals, and on tiny models against dense rules."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor

from dkn_engine.attribution.paths import Ends, Points
from dkn_engine.attribution.quadrature import (
    Integrals,
    integrate_adaptive,
    integrate_fixed,
)
from dkn_engine.attribution.quadrature_rules import (
    LEVELS,
    NODES,
    WEIGHTS,
    fixed_rule,
    interpolatory_weights,
)
from dkn_engine.config import AttributionConfig
from tests.support.attribution_runs import attributed
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import relative_error, sequences, tiny

Curve = Callable[[float], NDArray[np.float64]]
SOMEWHERE = 1 / np.sqrt(7)  # not a node of any rule, nor a fraction of a bisection


class Planted:
    """Stands for evaluator and paths: the gradients ``[F]`` of context c, layer l are a curve.

    The objective's slope is the sum of the gradients, so its values follow from the curve's
    antiderivative, as they do where scores are complete.
    """

    def __init__(self, curves: list[list[tuple[Curve, Curve]]]) -> None:
        self.curves = curves
        self.paid: Counter[tuple[int, int, float]] = Counter()
        width = len(curves[0][0][0](0.0))
        self.layout = SimpleNamespace(width=width)
        self.dtype = torch.float64
        self.value = torch.zeros(len(curves), len(curves[0]), width, dtype=self.dtype)

    def magnification(self) -> np.ndarray:
        return np.ones(self.value.shape)  # of a baseline of zero

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]:
        keys = list(
            zip(points.context.tolist(), points.layer.tolist(), points.alpha.tolist(), strict=True)
        )
        self.paid.update(keys)
        gradients = [self.curves[c][layer][0](a) for c, layer, a in keys]
        # The objective is 0.5 at the clean end, whatever the layer.
        values = [0.5 - self._rest(c, layer, a) for c, layer, a in keys]
        return torch.tensor(np.array(gradients)), torch.tensor(values, dtype=torch.float64)

    def _rest(self, c: int, layer: int, alpha: float) -> float:
        primitive = self.curves[c][layer][1]
        return float((primitive(1.0) - primitive(alpha)).sum())

    def begin(self, points: Points) -> tuple[Tensor, Tensor, Ends]:
        gradients = np.array([[curve(1.0) for curve, _ in row] for row in self.curves])
        values = torch.full((len(self.curves),), 0.5, dtype=torch.float64)
        return *self.evaluate(points), Ends(torch.tensor(gradients), values)

    def scores(
        self,
        _layer: int,
        gradients: Tensor,
        _alpha: Tensor,
        weights: Tensor,
        segments: Tensor,
        context: Tensor,
    ) -> Tensor:
        out = torch.zeros(len(weights), len(context), gradients.shape[1], dtype=torch.float64)
        for n, m in enumerate(segments.tolist()):
            out[:, m] += weights[:, n, None] * gradients[n]
        return out

    @property
    def exact(self) -> NDArray[np.float64]:
        """Integrals ``[C, L, F]``."""
        return np.array([[p(1.0) - p(0.0) for _, p in row] for row in self.curves])

    def integrate(self, tolerance: float = 1e-3, max_points: int = 512, **more: Any) -> Integrals:
        groups = more.pop("groups", np.arange(len(self.curves)))
        weights = more.pop("weights", np.ones(len(self.curves)))
        paths: Any = self
        return integrate_adaptive(self, paths, groups, weights, tolerance, max_points, **more)

    def true_error(self, found: Integrals) -> NDArray[np.float64]:
        """Relative L2 error ``[C]`` over all layers."""
        apart = np.linalg.norm((found.scores - self.exact).reshape(len(self.curves), -1), axis=1)
        size = np.linalg.norm(self.exact.reshape(len(self.curves), -1), axis=1)
        error: NDArray[np.float64] = apart / size
        return error


def bell(heights: Any, width: float, at: float) -> tuple[Curve, Curve]:
    """Gaussian bells; their tails are zero at every other place that a rule looks at."""
    h = np.asarray(heights, dtype=float) / (width * np.sqrt(2 * np.pi))
    scaled = np.asarray(heights, dtype=float) / 2
    return (
        lambda a: h * np.exp(-(((a - at) / width) ** 2) / 2),
        lambda a: scaled * erf((a - at) / width / np.sqrt(2)),
    )


def cauchy(heights: Any, width: float, at: float) -> tuple[Curve, Curve]:
    """Bells with long tails."""
    h = np.asarray(heights, dtype=float) / np.pi
    return (
        lambda a: h * width / ((a - at) ** 2 + width**2),
        lambda a: h * np.arctan((a - at) / width),
    )


def powers(*degrees: int) -> tuple[Curve, Curve]:
    k = np.array(degrees, dtype=float)
    return lambda a: (k + 1) * a**k, lambda a: a ** (k + 1)


def total(*parts: tuple[Curve, Curve]) -> tuple[Curve, Curve]:
    return (
        lambda a: np.sum([curve(a) for curve, _ in parts], axis=0),
        lambda a: np.sum([primitive(a) for _, primitive in parts], axis=0),
    )


SMOOTH = powers(0, 1, 2)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-6])
def test_a_narrow_peak_in_one_layer_is_found(tolerance: float) -> None:
    """A hundredth of the path wide: no point of the first rule is near it."""
    planted = Planted([[SMOOTH, total(SMOOTH, bell([3, 1, 2], 0.01, SOMEWHERE))]])
    found = planted.integrate(tolerance)
    assert found.converged.all()
    assert planted.true_error(found) <= tolerance
    assert found.n_points[0, 0] == 4  # a smooth layer pays for nobody else's peak
    assert found.n_points[0, 1] <= 200


def test_scores_that_cancel_are_refined_although_the_delta_is_zero() -> None:
    planted = Planted([[total(SMOOTH, cauchy([1, -1, 0], 0.01, SOMEWHERE))]])
    start = planted.integrate(max_points=7)  # no more than the five nodes of the first rule
    # What a check of completeness alone would have to go by ...
    assert np.abs(start.delta).max() < 1e-14
    # ... while the scores are far off.
    assert planted.true_error(start) > 0.1
    assert not start.converged.any()
    found = planted.integrate()
    assert found.converged.all()
    assert planted.true_error(found) <= 1e-3


@pytest.mark.parametrize("seed", range(20))
def test_peaks_anywhere_are_integrated_within_tolerance(seed: int) -> None:
    random = np.random.default_rng(seed)
    curves = []
    for _ in range(3):
        width, at = 10 ** random.uniform(-3, -0.5), random.uniform()
        kind = (bell, cauchy)[int(random.integers(2))]
        curves.append(total(SMOOTH, kind(random.normal(size=3), width, at)))
    planted = Planted([curves])
    found = planted.integrate()
    assert found.converged.all()
    assert planted.true_error(found) <= 1e-3


def test_the_estimate_bounds_the_true_error_once_the_peak_is_seen() -> None:
    planted = Planted([[total(SMOOTH, cauchy([1, 2, -1], 0.05, SOMEWHERE))]])
    for max_points in (20, 40, 80, 160):
        found = planted.integrate(1e-12, max_points)
        apart = np.linalg.norm(found.scores - planted.exact, axis=-1)
        assert (apart <= found.error).all()


def test_every_point_is_paid_once_and_counted() -> None:
    peak = total(SMOOTH, bell([1, 1, 1], 0.02, SOMEWHERE))
    planted = Planted([[SMOOTH, peak], [peak, SMOOTH]])
    found = planted.integrate(1e-6)
    assert set(planted.paid.values()) == {1}
    assert all(alpha < 1 for _, _, alpha in planted.paid)  # the clean end is not paid
    for (c, layer), n in np.ndenumerate(found.n_points):
        assert n == sum(key[:2] == (c, layer) for key in planted.paid)


@pytest.mark.parametrize("max_points", [7, 13, 30, 100])
def test_max_points_is_never_passed_and_never_silent(max_points: int) -> None:
    peak = total(SMOOTH, bell([1, 1, 1], 1e-4, SOMEWHERE))
    planted = Planted([[SMOOTH, peak, SMOOTH]])
    found = planted.integrate(1e-6, max_points)
    assert found.n_points.max() <= max_points
    assert found.converged.tolist() == [[True, False, True]]


def test_a_path_that_is_out_of_reach_does_not_drive_the_others() -> None:
    """Else they would be refined to the last digit, which does not help it."""
    peak = total(SMOOTH, bell([1, 1, 1], 1e-4, SOMEWHERE))
    alone = Planted([[SMOOTH, SMOOTH]]).integrate(1e-6)
    found = Planted([[SMOOTH, peak, SMOOTH]]).integrate(1e-6, 30)
    assert found.converged.tolist() == [[True, False, True]]
    assert (found.n_points[0, [0, 2]] <= alone.n_points[0].max()).all()


def test_a_fact_is_a_weighted_sum_of_contexts() -> None:
    """An error that a small weight hides, beside the others' scores, is not paid for."""
    peak = total(SMOOTH, bell([1, 1, 1], 0.01, SOMEWHERE))
    planted = Planted([[SMOOTH, SMOOTH], [SMOOTH, peak]])
    alike = planted.integrate(groups=np.array([0, 0]), weights=np.array([0.5, 0.5]))
    hidden = planted.integrate(groups=np.array([0, 0]), weights=np.array([1, 1e-5]))
    assert alike.n_points[1, 1] > 4
    assert hidden.n_points[1, 1] == 4
    apart = planted.integrate(groups=np.array([0, 1]), weights=np.array([1, 1e-5]))
    assert apart.n_points[1, 1] == alike.n_points[1, 1]


def test_without_completeness_the_objective_is_not_asked() -> None:
    planted = Planted([[SMOOTH]])
    rest = planted._rest

    def larger(c: int, layer: int, alpha: float) -> float:
        return 5 * rest(c, layer, alpha)

    planted._rest = larger  # type: ignore[method-assign]
    assert planted.integrate(complete=False).n_points.max() == 4
    assert planted.integrate(complete=True, max_points=50).n_points.max() > 4


def test_scores_that_are_not_numbers_are_not_converged() -> None:
    nan: tuple[Curve, Curve] = (lambda _: np.full(3, np.nan), lambda _: np.zeros(3))
    found = Planted([[SMOOTH, nan], [SMOOTH, SMOOTH]]).integrate()
    assert found.converged.tolist() == [[True, False], [True, True]]
    assert found.n_points.max() == 4  # more points would not help


def test_the_first_layer_and_the_last_quarter_begin_with_five_points() -> None:
    """All are exact at once: alpha = 1 costs nothing, so four and two are paid."""
    line: tuple[Curve, Curve] = (lambda _: np.ones(3), lambda a: np.full(3, a))
    planted = Planted([[line] * 12])
    found = planted.integrate()
    assert found.n_points.tolist() == [[4, 2, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4]]
    assert set(planted.paid.values()) == {1}
    assert np.abs(found.scores - planted.exact).max() < 1e-14


def test_zero_scores_converge_at_once() -> None:
    zero: tuple[Curve, Curve] = (lambda _: np.zeros(3), lambda _: np.zeros(3))
    found = Planted([[zero, zero, zero]]).integrate()
    assert found.converged.all()
    assert not found.scores.any()
    assert found.n_points.tolist() == [[4, 2, 4]]


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_nested_rules_are_exact_for_polynomials(n: int) -> None:
    """Up to degree 1, 3, 7 and 13, about twice that of the one before."""
    degree = {2: 1, 3: 3, 5: 7, 9: 13}[n]
    x, w = NODES[list(LEVELS[n])], WEIGHTS[n]
    assert (w > 0).all()
    for k in range(degree + 1):
        assert abs((w * x**k).sum() - 1 / (k + 1)) < 1e-14
    assert abs((w * x ** (degree + 1)).sum() - 1 / (degree + 2)) > 1e-10


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([0, 1], [1 / 2, 1 / 2]),
        ([0, 0.5, 1], [1 / 6, 4 / 6, 1 / 6]),
        ([0, 0.25, 0.5, 0.75, 1], [7 / 90, 32 / 90, 12 / 90, 32 / 90, 7 / 90]),
        ([0.5], [1]),
    ],
    ids=["trapezoid", "simpson", "boole", "midpoint"],
)
def test_interpolatory_weights_are_newtons_and_cotess(nodes: Any, weights: Any) -> None:
    found = interpolatory_weights(np.array(nodes, dtype=float))
    assert np.allclose(found, weights, rtol=0, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize(
    "rule", ["riemann_left", "riemann_middle", "riemann_right", "trapezoid", "gauss_legendre"]
)
def test_fixed_rules_integrate_what_they_should(rule: str, n: int) -> None:
    """Constants; straight lines by all but the one-sided rules, which are off by half a step."""
    if rule == "trapezoid" and n == 1:
        with pytest.raises(ValueError, match="n_steps must be at least 2 for 'trapezoid'; got 1"):
            fixed_rule(rule, n)
        return
    x, w = fixed_rule(rule, n)
    assert x.shape == w.shape == (n,)
    assert abs(w.sum() - 1) < 1e-14
    off = {"riemann_left": -0.5 / n, "riemann_right": 0.5 / n}.get(rule, 0.0)
    assert abs((w * x).sum() - 0.5 - off) < 1e-14
    if rule == "gauss_legendre":
        for k in range(2 * n):
            assert abs((w * x**k).sum() - 1 / (k + 1)) < 1e-13


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="simpson"):
        fixed_rule("simpson", 3)


def test_a_fixed_rules_delta_needs_the_baselines_objective() -> None:
    planted = Planted([[powers(1, 1, 1)]])
    found = integrate_fixed(planted, planted, "riemann_middle", 4)  # type: ignore[arg-type]
    assert np.allclose(found.scores, 1)
    assert np.abs(found.delta).max() < 1e-15
    assert (found.n_points == 5).all()
    found = integrate_fixed(planted, planted, "riemann_left", 4)  # type: ignore[arg-type]
    assert np.allclose(found.scores, 0.75)
    assert np.allclose(found.delta, -0.75)
    assert (found.n_points == 4).all()


@functools.cache
def dense(name: str, site: str, baseline: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the usual second sequence, of one answer token: scores, and what each layer's sum to."""
    # Panels that halve towards 0, where OLMo2's norm behind the MLP turns within 1e-3 of the path.
    x, w = np.polynomial.legendre.leggauss(12)
    edges = np.concatenate([[0], 0.5 ** np.arange(12, -1, -1)])
    lengths = np.diff(edges)[:, None]
    rule = (edges[:-1, None] + lengths * (x + 1) / 2).ravel(), (lengths * w / 2).ravel()
    oracle, one = BruteForce(name, tiny(name), site), sequences()[1]
    change = oracle.change(one, baseline, "probability")
    return oracle.scores(one, rule, baseline)[0].numpy(), change[0].numpy()


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize(("name", "site"), [("gpt2", "post"), ("gpt2", "pre"), ("olmo2", "post")])
def test_measured_errors_of_tiny_models_are_within_tolerance(
    name: str, site: Any, baseline: Any, tolerance: float
) -> None:
    config = AttributionConfig(site=site, baseline=baseline, tolerance=tolerance)
    found = attributed(name, tiny(name), config)
    assert found.converged.all()
    expected, change = dense(name, site, baseline)
    norm = np.linalg.norm(expected)
    assert relative_error(found.scores[1], expected) <= tolerance
    assert found.error[1] <= tolerance
    assert np.abs(expected.sum(-1) - change).max() < 0.1 * tolerance * norm  # dense enough
    assert np.linalg.norm(found.convergence_delta[1]) <= tolerance * norm
