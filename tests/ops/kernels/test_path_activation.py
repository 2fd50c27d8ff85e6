"""The one-pass ``path_activation`` against its reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dkn_engine.ops.path_activation import path_activation
from tests.ops.kernels.cases import DTYPES, Case, converted, pairs, require_no_worse, size, spelled
from tests.ops.kernels.cases import values as make
from tests.support.values import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poison")

CASES = pairs(
    n=(1, 7, 63),
    f=(1, 63, 331, size(1040, 1536)),
    act=tuple(ACTIVATIONS),
    gated=(False, True),
    strided=(False, True),
    dtype=DTYPES,
)
WIDE: Case = {"n": 1, "f": size(2064, 11008), "act": "silu", "gated": True, "strided": False}
CASES.append({**WIDE, "dtype": torch.bfloat16})


def inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    kind: dict[str, Any] = {"dtype": case["dtype"], "strided": case["strided"], "device": device}
    alphas = torch.linspace(0, 1, case["n"], dtype=torch.float64, device=device)
    shape = (case["n"], case["f"])
    start, end = make(*shape, seed=1, **kind), 3 * make(*shape, seed=2, **kind)
    return alphas, start, end, make(*shape, seed=3, **kind) if case["gated"] else None


@pytest.mark.parametrize("case", CASES, ids=spelled)
def test_points_are_no_worse_than_torchs(case: Case, kernel_device: str) -> None:
    given, act = inputs(case, kernel_device), ACTIVATIONS[case["act"]][0]
    found = path_activation(*given, act, backend="triton")
    plain = path_activation(*given, act, backend="reference")
    assert found.dtype == case["dtype"]
    exact = path_activation(*converted(given, Tensor.double), act, backend="reference")
    require_no_worse(found, [plain], exact, "activation")


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_far_out_the_activation_is_finite_and_the_reference(act: str, kernel_device: str) -> None:
    """Exponentials of large arguments overflow where a formula is careless."""
    ends = torch.tensor([[-1e4, -200.0, -30.0, -5.0, 0.0, 5.0, 30.0, 200.0, 1e4]])
    given = (torch.ones(1), torch.zeros_like(ends), ends, None)
    on_device = converted(given, lambda x: x.to(kernel_device))
    found = path_activation(*on_device, ACTIVATIONS[act][0], backend="triton")
    exact = path_activation(
        *converted(given, Tensor.double), ACTIVATIONS[act][0], backend="reference"
    )
    torchs = [path_activation(*given, ACTIVATIONS[act][0], backend="reference")]
    for i in range(ends.shape[1]):
        require_no_worse(found[:, i], [t[:, i] for t in torchs], exact[:, i], f"at {ends[0, i]}")


@pytest.mark.parametrize("shape", [(0, 7), (3, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int], kernel_device: str) -> None:
    ends = torch.zeros(shape, device=kernel_device)
    alphas = torch.zeros(shape[0], device=kernel_device)
    act = ACTIVATIONS["relu"][0]
    assert path_activation(alphas, ends, ends, ends, act, backend="triton").shape == shape
