"""The gain of the norm in front of an MLP, against the norm's own outputs."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import dkn_engine as dkn
from dkn_engine.config import TopologyConfig
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.models.norms import measured_gain
from tests.support.guests import state
from tests.support.tiny import FAMILIES, N_LAYERS, NORMS, ODD_NORMS, norm_of, tiny

D = 24
WITH_NORM = [name for name in FAMILIES | ODD_NORMS if NORMS[name] is not None]


def slopes(norm: nn.Module | None, dtype: torch.dtype) -> Tensor:
    """Float64 ``[d]``: by how much each output grows with its normalised input.

    By regression over random inputs, without the weights. Divided by its deviation or by its root
    mean square: inputs of mean zero are the same by both.
    """
    assert norm is not None
    x = torch.randn(512, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 100 * (x - x.mean(-1, keepdim=True))
    normed = x / x.square().mean(-1, keepdim=True).sqrt()
    with torch.no_grad():
        y: Tensor = norm(x.to(dtype)[None])[0].double()
    return ((y - y.mean(0)) * normed).sum(0) / ((normed - normed.mean(0)) * normed).sum(0)


@pytest.mark.parametrize("name", WITH_NORM)
def test_the_norm_is_the_one_whose_output_the_mlp_reads(name: str) -> None:
    """By the model's own forward, so that the table of the other tests is right."""
    model, seen = tiny(name, torch.float32), {}
    layout = find_layout(model)
    for layer in range(N_LAYERS):
        norm, gate = norm_of(name, model, layer), layout.mlps[layer].gate
        norm.register_forward_hook(lambda _m, _a, y, i=layer: seen.update({("norm", i): y}))
        gate.register_forward_pre_hook(lambda _m, a, i=layer: seen.update({("gate", i): a[0]}))
    model(input_ids=torch.arange(3, 9)[None])
    for layer in range(N_LAYERS):
        normed, read = seen["norm", layer], seen["gate", layer]
        assert torch.equal(normed.reshape(-1, D), read.reshape(-1, D))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", WITH_NORM)
def test_the_gain_is_what_the_norm_multiplies_by(name: str, dtype: torch.dtype) -> None:
    model = tiny(name, dtype)
    layout = find_layout(model)
    allowed = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for layer in range(N_LAYERS):
        expected = slopes(norm_of(name, model, layer), dtype)
        found = layout.norm_gain(layer)
        assert found.shape == (D,)
        torch.testing.assert_close(found.double(), expected, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "nemotron", "gemma4"])
def test_a_gain_in_bfloat16_is_not_rounded_again(name: str) -> None:
    """1 more than a weight of eight bits has more than eight bits."""
    model = tiny(name, torch.bfloat16)
    exact = find_layout(model.float()).norm_gain(1)
    assert torch.equal(find_layout(model.to(torch.bfloat16)).norm_gain(1).float(), exact)


def test_a_model_without_a_norm_in_front_is_refused() -> None:
    with pytest.raises(dkn.UnsupportedModelError, match="fold_norm=True: expected a norm in front"):
        find_layout(tiny("olmo2")).norm_gain(0)


def test_a_norm_behind_the_mlp_is_not_taken_for_the_one_in_front() -> None:
    """As in OPT-350m: the same name, another place."""
    model = tiny("opt", torch.float32, do_layer_norm_before=False)
    found = find_layout(model).norm_gain(1)
    expected = slopes(model.model.decoder.layers[1].self_attn_layer_norm, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_hook_on_the_norm_counts() -> None:
    model = tiny("llama", torch.float32)
    plain = find_layout(model).norm_gain(1)
    norm_of("llama", model, 1).register_forward_hook(lambda _m, _a, y: 2 * y)
    torch.testing.assert_close(find_layout(model).norm_gain(1), 2 * plain)


def squashing(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
    return y.tanh()


def at_one_place(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
    y = y.clone()
    y[:, -1] = 0
    return y


@pytest.mark.parametrize("hook", [squashing, at_one_place])
def test_a_norm_that_is_none_is_refused(hook: Any) -> None:
    model = tiny("llama", torch.float32)
    norm_of("llama", model, 1).register_forward_hook(hook)
    layout = find_layout(model)
    layout.norm_gain(0)
    expected = r"'post_attention_layernorm' \(LlamaRMSNorm\), which has no constant gain"
    with pytest.raises(dkn.UnsupportedModelError, match=expected):
        layout.norm_gain(1)


class Gated(nn.Module):
    """A norm that another layer gates, as in state-space models."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (D,)) * gate.sigmoid()


def test_what_takes_more_than_one_tensor_has_no_constant_gain() -> None:
    assert measured_gain(Gated(), torch.zeros(1, D)) is None


def constructed(kind: type[nn.Module], d: int) -> nn.Module | None:
    """A norm of width ``d`` with random weights; None for what needs more than a width."""
    first, *others = list(inspect.signature(kind.__init__).parameters.values())[1:]
    sized = first.name in {"hidden_size", "dim", "normalized_shape", "num_features"}
    needed = [p for p in (others if sized else [first, *others]) if p.default is p.empty]
    if any(p.kind is p.POSITIONAL_OR_KEYWORD for p in needed) or "Group" in kind.__name__:
        return None
    norm = kind(d) if sized else kind()
    random = torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return norm


def of_causal_models() -> list[type[nn.Module]]:
    """Every class with "Norm" in its name in the files of transformers' causal language models."""
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    models = [getattr(transformers, n if isinstance(n, str) else n[0]) for n in named]
    files = {model.__module__ for model in models}
    found = {
        kind
        for file in files
        for name, kind in vars(sys.modules[file]).items()
        if "Norm" in name and inspect.isclass(kind) and issubclass(kind, nn.Module)
    }
    return sorted(found, key=lambda kind: (kind.__name__, kind.__module__))


# Norms that are none by themselves: they take a gate, too, or give only the divisor.
NO_GAIN = ("RMSNormGated", "HYV4UnweightedRMSNorm")


def test_every_norm_of_the_causal_models_has_the_gain_it_multiplies_by() -> None:
    """Whatever its class keeps as weight, centres, or adds."""
    measured = set()
    for kind in of_causal_models():
        norm = constructed(kind, D)
        if norm is None:
            continue
        for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            gain = measured_gain(norm.to(dtype), torch.zeros(1, D, dtype=dtype))
            if gain is None:
                assert kind.__name__.endswith(NO_GAIN), kind
                continue
            expected = slopes(norm, dtype)
            assert float((gain.double() - expected).abs().max()) <= allowed, (kind, dtype)
            measured.add(kind.__name__)
    odd = {f"{n}RMSNorm" for n in ("Gemma4", "VaultGemma", "Qwen3_5", "Qwen3Next")}
    assert odd | {"LayerNorm", "NemotronLayerNorm1P", "CohereLayerNorm", "LlamaRMSNorm"} <= measured


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = tiny(name, torch.float32).train()
    before = state(model)
    find_layout(model).norm_gain(1)
    assert state(model) == before


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "qwen3_next"])
def test_gains_are_folded_into_what_neurons_read(name: str) -> None:
    model = tiny(name, torch.float32)
    neurons = np.array([[2, 39], [0, 3], [2, 0]], dtype=np.int32)
    plain, folded = (
        connection_rows(find_layout(model), neurons, TopologyConfig(fold_norm=fold))
        for fold in (False, True)
    )
    np.testing.assert_array_equal(folded[0], plain[0])
    for row, more, (layer, _) in zip(plain[1], folded[1], neurons.tolist(), strict=True):
        expected = slopes(norm_of(name, model, layer), torch.float32).numpy() * row
        np.testing.assert_allclose(more, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(folded[1], plain[1])
