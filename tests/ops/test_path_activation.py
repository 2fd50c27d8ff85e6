"""``path_activation`` against closed forms in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dkn_engine.errors import BackendError
from dkn_engine.ops.path_activation import path_activation
from tests.support.values import ACTIVATIONS, DTYPES, normal, step, wide

BACKENDS = ("reference", "numba")
SHAPES = [(1, 1), (7, 63), (63, 331), (331, 7), (0, 5), (5, 0)]


Given = tuple[Tensor, Tensor, Tensor, Tensor | None]


def inputs(n: int, f: int, dtype: torch.dtype, gated: bool) -> Given:
    alphas = torch.linspace(0, 1, n, dtype=torch.float64)
    baseline, value = normal(n, f, dtype=dtype, seed=1), 3 * normal(n, f, dtype=dtype, seed=2)
    return alphas, baseline, value, normal(n, f, dtype=dtype, seed=3) if gated else None


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_points_equal_the_closed_form(
    backend: str, shape: tuple[int, int], dtype: torch.dtype, act: str, gated: bool
) -> None:
    module, form, _ = ACTIVATIONS[act]
    alphas, baseline, value, up = inputs(*shape, dtype, gated)
    found = path_activation(alphas, baseline, value, up, module, backend=backend)
    start, end = baseline.double(), value.double()
    z = start + alphas[:, None] * (end - start)
    gain = torch.ones(()) if up is None else up.double()
    expected = form(z) * gain
    assert found.dtype == dtype
    assert found.shape == expected.shape
    # One rounding to the dtype of the model, a few of the numbers on the way (slopes are < 1.2).
    size = (start.abs() + end.abs() + 1) * gain.abs()
    allowed = step(dtype) * expected.abs() + 8 * step(wide(dtype)) * size
    # Numbers below float16's normal range are rounded to its smallest steps.
    assert ((found.double() - expected).abs() <= allowed + torch.finfo(dtype).smallest_normal).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_ends_of_the_path_are_the_ends_given(dtype: torch.dtype) -> None:
    _, baseline, value, _ = inputs(3, 5, dtype, False)
    identity = torch.nn.Identity()
    ends = {0.0: baseline, 1.0: value}
    for alpha, end in ends.items():
        alphas = torch.full((3,), alpha, dtype=torch.float64)
        found = path_activation(alphas, baseline, value, None, identity)
        slack = 2 * step(wide(dtype)) * (baseline.abs() + value.abs()).double()
        assert ((found - end).abs() <= slack + step(dtype) * end.abs() * (dtype.itemsize > 2)).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    alphas, baseline, value, _ = inputs(7, 5, torch.float32, False)
    relu = torch.nn.ReLU()
    with pytest.raises(ValueError, match=r"must be \[N\], \[N, F\], \[N, F\]; got"):
        path_activation(alphas[:3], baseline, value, None, relu)
    with pytest.raises(ValueError, match=r"must be \[N\], \[N, F\], \[N, F\]; got"):
        path_activation(alphas, baseline[:, :2], value, None, relu)


def test_an_unknown_backend_is_an_error_that_names_what_there_is() -> None:
    with pytest.raises(BackendError, match=r"path_activation: backend \'abacus\' .* reference"):
        path_activation(*inputs(7, 5, torch.float32, False), torch.nn.ReLU(), backend="abacus")
