"""The gain of the norm in front of an MLP, against the norm's own outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dkn_engine as dkn
from dkn_engine.config import TopologyConfig
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
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
