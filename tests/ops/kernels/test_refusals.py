"""A backend that is asked for runs or says why not; only ``auto`` chooses."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import BackendError
from dkn_engine.models.layout import find_layout
from dkn_engine.ops import dispatch
from dkn_engine.ops.activation import kernel_kind
from dkn_engine.ops.answer_probability import answer_probability
from dkn_engine.ops.ig_accumulate import ig_accumulate
from dkn_engine.ops.path_activation import path_activation
from dkn_engine.run.build_info import build_info
from tests.ops.kernels.cases import INTERPRETED
from tests.support.tiny import MASK_ID, sequences, tiny

SOME = sequences()[:1]


def activate(act: nn.Module, backend: str, dtype: torch.dtype = torch.float32, device="cpu"):  # type: ignore[no-untyped-def]  # of a test
    x = torch.ones(2, 3, dtype=dtype, device=device)
    return path_activation(torch.ones(2, device=device), x, x, None, act, backend=backend)


@pytest.mark.skipif(INTERPRETED, reason="interpreted, kernels do run on the CPU")
def test_triton_without_a_gpu_says_so() -> None:
    pytest.importorskip("triton", reason="triton has no wheel for this system")
    with pytest.raises(BackendError, match="'triton' cannot run here: expected tensors on a GPU"):
        activate(nn.SiLU(), "triton")


def test_triton_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda _name: None)
    with pytest.raises(BackendError, match="triton is not installed"):
        activate(nn.SiLU(), "triton")


def test_double_precision_is_not_for_kernels() -> None:
    pytest.importorskip("triton", reason="triton has no wheel for this system")
    with pytest.raises(BackendError, match=r"expected float32, .*; found torch\.float64"):
        activate(nn.SiLU(), "triton", torch.float64)


def test_a_backend_without_operations_says_what_there_is() -> None:
    expected = "'native' is not available; found: reference, triton, numba .the C.. code is for top"
    with pytest.raises(BackendError, match=expected):
        activate(nn.SiLU(), "native")


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_attribution_raises_instead_of_taking_another_way(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda _name: None)
    model = tiny("llama", torch.float32)
    config = AttributionConfig(quadrature="riemann_left", n_steps=1, backend=backend)
    with pytest.raises(BackendError):
        attribute_chunk(model, find_layout(model), SOME, config, mask_id=MASK_ID)


def test_auto_takes_kernels_on_a_gpu_unless_they_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu: Any = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    pytest.importorskip("triton", reason="triton has no wheel for this system")
    assert dispatch.choose("any", "auto", on_gpu) == "triton"
    assert dispatch.choose("any", "auto", on_gpu, "not this one") == "reference"
    with pytest.raises(BackendError, match=r"any: .* cannot run here: not this one"):
        dispatch.choose("any", "triton", on_gpu, "not this one")
    double: Any = SimpleNamespace(is_cuda=True, dtype=torch.float64)
    assert dispatch.choose("any", "auto", double) == "reference"
    monkeypatch.setattr(dispatch, "find_spec", lambda _name: None)
    assert dispatch.choose("any", "auto", on_gpu) == "reference"


def test_auto_on_the_cpu_does_not_even_import_triton() -> None:
    code = (
        "import sys, torch\n"
        "from dkn_engine.ops.path_activation import path_activation\n"
        "x = torch.ones(2, 3)\n"
        "path_activation(torch.ones(2), x, x, None, torch.nn.SiLU())\n"
        "print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stderr


def test_non_linearities_are_known_by_their_exact_class() -> None:
    from transformers import activations

    class Scaled(nn.SiLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    known = {"gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu", "silu", "swish", "relu"}
    x = torch.linspace(-4, 4, 33)
    like = {
        "gelu_tanh": nn.GELU("tanh"),
        "gelu_erf": nn.GELU(),
        "silu": nn.SiLU(),
        "relu": nn.ReLU(),
    }
    for name in known:
        kind = kernel_kind(activations.ACT2FN[name])
        assert kind is not None, name
        assert torch.allclose(activations.ACT2FN[name](x), like[kind](x), atol=1e-6), name
    others = [Scaled(), nn.Tanh(), activations.ACT2FN["quick_gelu"], activations.ACT2FN["relu2"]]
    assert [kernel_kind(act) for act in others] == [None] * 4


def test_an_unknown_non_linearity_is_refused_by_name(kernel_device: str) -> None:
    expected = r"expected a non-linearity among gelu .*; found Tanh"
    with pytest.raises(BackendError, match=expected):
        activate(nn.Tanh(), "triton", device=kernel_device)
    x = torch.ones(2, 3, device=kernel_device)
    path = (torch.ones(2), x, x, None, nn.Tanh())
    zeros = torch.zeros(2, dtype=torch.int64, device=kernel_device)
    with pytest.raises(BackendError, match=expected):
        ig_accumulate(x, torch.ones(1, 2), zeros, x.T @ x, x, path=path, backend="triton")
    assert torch.equal(
        activate(nn.Tanh(), "auto", device=kernel_device).cpu(), torch.ones(2, 3).tanh()
    )


def test_a_tail_that_is_a_plain_function_is_refused(kernel_device: str) -> None:
    hidden, targets = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(BackendError, match="expected a Tail that can be taken apart"):
        answer_probability(
            lambda x: x,
            hidden.to(kernel_device),
            targets.to(kernel_device),
            objective="probability",
            gradient=False,
            backend="triton",
        )


def test_gradients_of_another_dtype_than_the_weights_are_refused(kernel_device: str) -> None:
    x = torch.ones(2, 3, device=kernel_device)
    zeros = torch.zeros(2, dtype=torch.int64, device=kernel_device)
    with pytest.raises(BackendError, match="gradients and w_out of one dtype"):
        ig_accumulate(x.bfloat16(), torch.ones(1, 2), zeros, x.T @ x, x, backend="triton")


def test_a_kernel_that_fails_is_raised_and_not_taken_for_a_layer_that_does(
    kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dkn_engine.ops.prefix_attention import triton as kernels

    def broken(*_args: Any, **_options: Any) -> dict[str, int]:
        return {"BR": 16, "BT": 16, "BD": 3, "BV": 16, "num_warps": 4}  # no power of two

    monkeypatch.setattr(kernels, "block_sizes", broken)
    model = tiny("llama", torch.float32).to(kernel_device)
    config = AttributionConfig(quadrature="riemann_left", n_steps=1, backend="triton")
    with pytest.raises(BackendError, match="forward_kernel failed"):
        attribute_chunk(model, find_layout(model), SOME, config, mask_id=MASK_ID)


def test_build_info_says_what_runs() -> None:
    backends = build_info()["backends"]
    assert set(backends) == {"reference", "native", "numba", "triton"}
    triton = backends["triton"]
    assert triton.startswith("runs") is (INTERPRETED or torch.cuda.is_available()), triton
