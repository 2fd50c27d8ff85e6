"""``ig_accumulate`` against a loop over points in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dkn_engine.errors import BackendError
from dkn_engine.ops.ig_accumulate import ig_accumulate
from tests.support.values import ACTIVATIONS, DTYPES, normal, step, wide

BACKENDS = ("reference", "numba")
SHAPES = [(1, 1, 1), (7, 63, 7), (63, 7, 331), (331, 331, 63)]  # points, F, d
K, M = 2, 4  # rules; segments, of which the last has no points


def inputs(n: int, f: int, d: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "gradients": normal(n, d, dtype=dtype, seed=1),
        "weights": normal(K, n, dtype=wide(dtype), seed=2),
        "segments": torch.arange(n) % (M - 1),
        "w_out": normal(f, d, dtype=dtype, seed=3),
        "factor": normal(M, f, dtype=dtype, seed=4),
    }


def path_of(n: int, f: int, dtype: torch.dtype, gated: bool, act: str) -> tuple[Any, ...]:
    alphas = torch.linspace(0, 1, n, dtype=torch.float64)
    baseline, delta = normal(M, f, dtype=dtype, seed=5), normal(M, f, dtype=dtype, seed=6)
    up = normal(M, f, dtype=dtype, seed=7) if gated else None
    return alphas, baseline, delta, up, ACTIVATIONS[act][0]


def by_loop(given: dict[str, Any], path: tuple[Any, ...] | None, act: str) -> tuple[Tensor, Tensor]:
    """Scores, and the same sums of absolute values, which bound what rounding can do."""
    g, w, w_out, factor = (given[k].double() for k in ("gradients", "weights", "w_out", "factor"))
    scores, sizes = torch.zeros(2, K, M, factor.shape[1], dtype=torch.float64)
    for s, m in enumerate(given["segments"].tolist()):
        local, size = w_out @ g[s], w_out.abs() @ g[s].abs()
        if path is not None:
            alphas, baseline, delta, up, _ = path
            slope = ACTIVATIONS[act][2](baseline[m].double() + alphas[s] * delta[m].double())
            gain = torch.ones(()) if up is None else up[m].double()
            # The slope itself is rounded where it is computed, so not relative to its size.
            local, size = local * slope * gain, size * gain.abs() * slope.abs().clamp(min=1)
        for k in range(K):
            scores[k, m] += w[k, s] * local * factor[m]
            sizes[k, m] += (w[k, s] * size * factor[m]).abs()
    return scores, sizes


def check(given: dict[str, Any], path: tuple[Any, ...] | None, act: str, backend: str) -> None:
    n, d = given["gradients"].shape
    found = ig_accumulate(**given, path=path, backend=backend)
    expected, sizes = by_loop(given, path, act)
    computed = wide(given["gradients"].dtype)
    assert found.dtype == computed
    assert found.shape == expected.shape
    # A sum of n products of sums of d products, and a dozen roundings of each.
    assert ((found - expected).abs() <= (n + d + 12) * step(computed) * sizes).all()
    assert not found[:, M - 1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_post_sums_equal_a_loop(
    backend: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    check(inputs(*shape, dtype), None, "", backend)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_pre_sums_equal_a_loop(
    backend: str, shape: tuple[int, int, int], dtype: torch.dtype, act: str, gated: bool
) -> None:
    n, f, _ = shape
    check(inputs(*shape, dtype), path_of(n, f, dtype, gated, act), act, backend)


@pytest.mark.parametrize("act", ["", "silu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_points_give_zeros(backend: str, act: str) -> None:
    path = path_of(0, 7, torch.float32, True, act) if act else None
    found = ig_accumulate(**inputs(0, 7, 3, torch.float32), path=path, backend=backend)
    assert torch.equal(found, torch.zeros(K, M, 7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_left_alone_and_no_graph_is_built(backend: str) -> None:
    given, path = inputs(7, 5, 3, torch.float32), path_of(7, 5, torch.float32, True, "gelu")
    kept = {k: v.clone() for k, v in given.items()}
    with torch.no_grad():
        first = ig_accumulate(**given, path=path, backend=backend)
    assert all(torch.equal(v, given[k]) for k, v in kept.items())
    assert not first.requires_grad
    second = ig_accumulate(**given, path=path, backend=backend)
    assert torch.equal(first, second)


def test_weights_of_another_shape_are_refused() -> None:
    given = inputs(7, 5, 3, torch.float32) | {"weights": normal(7)}
    with pytest.raises(ValueError, match=r"weights must have shape \[K, 7\]; got \(7,\)"):
        ig_accumulate(**given)


def test_points_and_paths_of_other_shapes_are_refused() -> None:
    given, path = inputs(7, 5, 3, torch.float32), path_of(7, 5, torch.float32, True, "gelu")
    with pytest.raises(ValueError, match=r"segments must have shape \[7\]; got \(6,\)"):
        ig_accumulate(**{**given, "segments": given["segments"][1:]})
    for i, name in enumerate(("alphas", "baselines", "deltas", "up")):
        short = (*path[:i], path[i][1:], *path[i + 1 :])
        with pytest.raises(ValueError, match=rf"{name} must have shape \[.*\]; got \("):
            ig_accumulate(**given, path=short)


def test_an_unknown_backend_is_an_error_that_names_what_there_is() -> None:
    with pytest.raises(BackendError, match=r"ig_accumulate: backend \'abacus\' .* reference"):
        ig_accumulate(**inputs(7, 5, 3, torch.float32), backend="abacus")
