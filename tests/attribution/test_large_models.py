"""Models that do not fit one device as they are: hooked, packed, in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.connections import layer_weights
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import attributed, fixed
from tests.support.guests import state
from tests.support.tiny import (
    N_LAYERS,
    WIDTH,
    down_of,
    relative_error,
    tiny,
)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_device_map_of_one_device_gives_the_same_scores(name: str) -> None:
    plain = attributed(name, tiny(name), fixed())
    model = accelerate.dispatch_model(tiny(name), device_map={"": "cpu"}, force_hooks=True)
    assert hasattr(down_of(name, model, 1), "_hf_hook")
    found = attributed(name, model, fixed())
    assert found.path == "sweep"
    assert np.array_equal(found.scores, plain.scores)


def test_weights_on_two_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on two GPUs; a second device is made up, since there is none here."""
    model = tiny("llama")
    far = {id(p) for p in model.get_submodule("model.layers.2").parameters()}
    device = Tensor.device
    monkeypatch.setattr(
        nn.Parameter,
        "device",
        property(lambda p: torch.device("cuda:1") if id(p) in far else device.__get__(p)),
    )
    with pytest.raises(UnsupportedModelError) as caught:
        find_layout(model)
    message = str(caught.value)
    assert "expected all weights on one device" in message
    assert "'model.embed_tokens.weight' on cpu" in message
    assert "'model.layers.2.self_attn.q_proj.weight' on cuda:1" in message
    assert "without hooks of accelerate" in message


class Int8Linear(nn.Module):
    """Integers in a buffer and a scale, as GPTQ, AWQ and others keep them."""

    qweight: Tensor
    scale: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        scale = base.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (base.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight * self.scale)


class Packed(nn.Module):
    """Its weight is behind a method, as in torch.ao's dynamic quantisation."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self._packed = [base.weight.detach()]

    def weight(self) -> Tensor:
        return self._packed[0]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight())


class Scaled(nn.Linear):
    """An ``nn.Linear`` by class, whose floating weight is not what it multiplies by."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, dtype=base.weight.dtype)
        self.weight = nn.Parameter(base.weight.detach() / 3)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Subclass(Tensor):
    """A tensor that is not what it looks like, as torchao's are."""


def as_subclass(base: nn.Linear) -> nn.Linear:
    base.weight = nn.Parameter(base.weight.detach().as_subclass(Subclass))
    return base


def as_float8(base: nn.Linear) -> nn.Linear:
    base.weight = nn.Parameter(base.weight.detach().to(torch.float8_e4m3fn))
    return base


class Blind(nn.Module):
    """Dequantises and multiplies outside autograd: right probabilities, no gradient."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.table = [base.weight.detach()]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.table[0])


class Seeing(Blind):
    """The same with gradients, whatever it keeps its weight in."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.table[0])


def with_part(path: str, make: Callable[[nn.Linear], nn.Module]) -> Any:
    model = tiny("llama")
    parent, _, leaf = f"model.layers.1.{path}".rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, leaf, make(getattr(owner, leaf)))
    return model


def dequantised(model: Any) -> Any:
    """The model with plain projections in the place of the stand-ins, by their own numbers."""
    for path, module in list(model.named_modules()):
        weight: Any = None
        if isinstance(module, Int8Linear):
            weight = module.qweight * module.scale
        elif isinstance(module, Packed):
            weight = module.weight()
        elif isinstance(module, Scaled):
            weight = 3 * module.weight
        elif isinstance(getattr(module, "weight", None), Subclass):
            weight = module.weight.as_subclass(Tensor)
        if weight is not None:
            n_out, n_in = weight.shape
            plain = nn.Linear(n_in, n_out, bias=False, dtype=weight.dtype)
            plain.weight = nn.Parameter(weight.detach())
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain)
    return model


SERVED: list[tuple[str, Callable[[nn.Linear], nn.Module]]] = [
    *((path, Int8Linear) for path in ("mlp.down_proj", "mlp.gate_proj", "self_attn.q_proj")),
    ("self_attn.v_proj", Packed),
    *((path, as_subclass) for path in ("mlp.down_proj", "self_attn.k_proj")),
    ("mlp.down_proj", Scaled),
]


@pytest.mark.parametrize(("path", "make"), SERVED)
def test_packed_layers_count_as_what_they_multiply_by(
    path: str, make: Callable[[nn.Linear], nn.Module]
) -> None:
    model = with_part(path, make)
    plain = dequantised(with_part(path, make))
    assert not any(isinstance(m, Int8Linear | Packed | Scaled) for m in plain.modules())
    before = state(model)
    found, expected = (attributed("llama", m, fixed()) for m in (model, plain))
    assert state(model) == before
    assert relative_error(found.scores, expected.scores) < 1e-10
    for rows, own in zip(layer_weights(model), layer_weights(plain), strict=True):
        for a, b in zip(rows, own, strict=True):
            assert relative_error(a, b) < 1e-6


class Rounding(Int8Linear):
    """Rounds what it is given to eight bits too, as LLM.int8 does."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return super().forward(x + ((x / step).round() * step - x).detach())


class BlindProjection(Blind):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.register_buffer("scale", torch.ones((), dtype=base.weight.dtype))


REFUSED: list[tuple[str, Callable[[nn.Linear], nn.Module], str]] = [
    ("mlp.up_proj", Packed, "dense floating-point projection"),
    ("mlp.gate_proj", as_float8, "layers[1].mlp.gate_proj (Linear), which cannot be tried"),
    ("mlp.down_proj", Rounding, "found layers[1].mlp.down_proj (Rounding), which gives something"),
    ("mlp.gate_proj", Blind, "expected an MLP with an output projection"),
    ("mlp.down_proj", BlindProjection, "BlindProjection at layers[1].mlp.down_proj, which does"),
    ("self_attn.o_proj", Blind, "found Blind at layers[1].self_attn.o_proj, which does not"),
]


@pytest.mark.parametrize(("path", "make", "message"), REFUSED)
def test_layers_that_cannot_be_read_or_give_no_gradient_are_refused(
    path: str, make: Callable[[nn.Linear], nn.Module], message: str
) -> None:
    model = with_part(path, make)
    with pytest.raises(UnsupportedModelError) as caught:
        attributed("llama", model, fixed())
    assert message in str(caught.value)


def test_a_module_of_ones_own_that_passes_gradients_on_is_used_and_left_as_it_was() -> None:
    model = with_part("self_attn.o_proj", Seeing)
    before = state(model)
    found = attributed("llama", model, fixed())
    assert state(model) == before
    assert np.array_equal(found.scores, attributed("llama", tiny("llama"), fixed()).scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sums_of_half_precision_weights_are_taken_in_float32(name: str, dtype: torch.dtype) -> None:
    """The product with W_out and the sum over steps add no rounding of the weights' dtype.

    Gradients of path points come out of the model rounded to its dtype; from those on, each of
    ``S`` weighted terms and ``d`` products rounds in float32, and x - x' once: (S + d + 2) eps.
    """
    from dkn_engine.attribution.paths import Paths

    model, one = tiny(name, dtype), torch.Generator().manual_seed(3)
    layout, n = find_layout(model), 7
    value = torch.randn(1, N_LAYERS, WIDTH, generator=one).to(dtype)
    baseline = torch.randn(1, N_LAYERS, WIDTH, generator=one)
    gradients = torch.randn(n, layout.d_model, generator=one).to(dtype)
    weights = torch.rand(1, n, generator=one, dtype=torch.float64)
    paths = Paths(layout, "post", value, baseline, None, "delta", "reference")
    nowhere, alpha = torch.zeros(n, dtype=torch.int64), torch.rand(n, dtype=torch.float64)
    found = paths.scores(1, gradients, alpha, weights, nowhere, torch.zeros(1, dtype=torch.int64))
    assert found.dtype == torch.float32
    matrix = layout.mlps[1].w_out(slice(None)).double()
    terms = weights[0].unsqueeze(1) * gradients.double()
    delta = value[0, 1].double() - baseline[0, 1].double()
    exact = (terms.sum(0) @ matrix.T) * delta
    most = (terms.abs().sum(0) @ matrix.abs().T) * delta.abs()
    rounding = (n + layout.d_model + 2) * torch.finfo(torch.float32).eps
    assert bool(((found[0, 0].double() - exact).abs() <= rounding * most).all())
