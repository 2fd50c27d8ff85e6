"""Adapters of peft on the MLP's projections: unmerged ones count as the merged ones do.

The oracle is the same model with the adapter put into its weights by peft.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import peft
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.connections import layer_weights
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import attributed, fixed
from tests.support.guests import state
from tests.support.saved import many_facts
from tests.support.tiny import relative_error, tiny
from tests.support.words import words_tokenizer

# The adapters compute in float32 or round as peft merges; what is compared is of order 1.
MERGED = 1e-6
LLAMA = ["gate_proj", "up_proj", "down_proj"]


# peft asks the model for all its attributes, of which one is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 3, "init_lora_weights": False, **options})


KINDS: dict[str, tuple[str, Any]] = {
    "LoRA": ("llama", lora(target_modules=LLAMA)),
    "LoRA beside attention": ("llama", lora(target_modules=[*LLAMA, "q_proj", "v_proj"])),
    "LoRA on down alone": ("llama", lora(target_modules=["down_proj"])),
    "LoRA with its own scale": ("llama", lora(target_modules=LLAMA, use_rslora=True, lora_alpha=5)),
    "LoRA with dropout": ("llama", lora(target_modules=LLAMA, lora_dropout=0.5)),
    "LoRA on fused halves": ("phi3", lora(target_modules=["gate_up_proj", "down_proj"])),
    "LoRA on Conv1D": ("gpt2", lora(target_modules=["c_fc", "c_proj"], fan_in_fan_out=True)),
    "LoRA with biases": (
        "gpt2",
        lora(target_modules=["c_fc"], fan_in_fan_out=True, lora_bias=True),
    ),
    "DoRA": ("llama", lora(target_modules=LLAMA, use_dora=True)),
    "IA3": ("llama", peft.IA3Config(target_modules=LLAMA, feedforward_modules=["down_proj"])),
    "LoHa": ("llama", peft.LoHaConfig(target_modules=LLAMA, r=2, init_weights=False)),
    "LoKr": ("llama", peft.LoKrConfig(target_modules=LLAMA, r=2, init_weights=False)),
    "modules to save": ("llama", lora(target_modules=["q_proj"], modules_to_save=LLAMA)),
}


def adapted(kind: str) -> Any:
    """A tiny model with an adapter whose weights are random, in eval mode."""
    family, config = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)  # peft draws from torch's own generator
        model = peft.get_peft_model(tiny(family), copy.deepcopy(config)).double()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=noise, dtype=p.dtype))
    return model.eval()


def merged(model: Any) -> Any:
    return copy.deepcopy(model).merge_and_unload()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_merged_model(kind: str) -> None:
    model, family = adapted(kind), KINDS[kind][0]
    plain = merged(model)
    assert relative_error(logits(model), logits(plain)) < MERGED
    assert relative_error(logits(model), logits(tiny(family))) > 1e-2  # the adapter does something
    for site in ("post", "pre"):
        expected = attributed(family, plain, fixed(site=site))
        found = attributed(family, model, fixed(site=site))
        assert found.path == expected.path
        assert relative_error(found.scores, expected.scores) < MERGED


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 12)[None]).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_connections_are_those_of_the_merged_model(kind: str) -> None:
    model = adapted(kind)
    for config in (dkn.TopologyConfig(), dkn.TopologyConfig(fold_norm=True)):
        for found, expected in zip(
            layer_weights(model, config), layer_weights(merged(model), config), strict=True
        ):
            for a, b in zip(found, expected, strict=True):
                assert relative_error(a, b) < MERGED


@pytest.mark.parametrize("kind", ["LoRA", "LoRA on Conv1D", "DoRA"])
def test_the_whole_of_find_gives_what_it_gives_for_the_merged_model(kind: str) -> None:
    model, tokenizer = adapted(kind), words_tokenizer()
    facts = many_facts(merged(model), 8)  # every second is what the model says
    before = state(model)
    found = dkn.find_dkns(model, tokenizer, facts)
    assert state(model) == before
    expected = dkn.find_dkns(merged(model), tokenizer, facts)
    assert [r.status for r in found] == [r.status for r in expected]
    known = [(a, b) for a, b in zip(found, expected, strict=True) if b.status == "ok"]
    assert len(known) >= 3
    for one, other in known:
        np.testing.assert_array_equal(one.neurons, other.neurons)
        assert [c.neurons.tolist() for c in one.components] == [
            c.neurons.tolist() for c in other.components
        ]
        for name in ("scores", "subset_probabilities"):
            assert relative_error(getattr(one, name), getattr(other, name)) < MERGED
        assert one.dkn == other.dkn


def test_the_adapter_that_is_active_counts_and_none_when_they_are_off() -> None:
    model = adapted("LoRA")
    first = attributed("llama", model, fixed()).scores
    model.add_adapter("other", dataclasses.replace(lora(target_modules=LLAMA)))
    model.double().set_adapter("other")
    second = attributed("llama", model, fixed()).scores
    assert relative_error(second, attributed("llama", merged(model), fixed()).scores) < MERGED
    assert relative_error(second, first) > 1e-2
    with model.disable_adapter():
        off = attributed("llama", model, fixed()).scores
    assert relative_error(off, attributed("llama", tiny("llama"), fixed()).scores) < MERGED


def test_merging_in_place_changes_nothing() -> None:
    model = adapted("LoRA")
    expected = attributed("llama", model, fixed()).scores
    model.merge_adapter()
    assert relative_error(attributed("llama", model, fixed()).scores, expected) < MERGED


def test_training_mode_with_dropout_is_read_as_eval() -> None:
    model = adapted("LoRA with dropout")
    expected = [rows[0] for rows in layer_weights(model)]
    model.train()
    for found, own in zip(layer_weights(model), expected, strict=True):
        np.testing.assert_array_equal(found[0], own)
    assert model.training


def test_an_adapter_that_is_not_linear_is_refused_by_name() -> None:
    """As some mixtures of adapters, which choose by the input."""
    model = adapted("LoRA")
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    forward = layer.forward
    layer.forward = lambda x: forward(x) * torch.tanh(x.norm(dim=-1, keepdim=True))
    with pytest.raises(UnsupportedModelError, match=r"linear in its input.*layers\[1\].mlp.down"):
        find_layout(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "LoRA on Conv1D"])
def test_short_dtypes_are_read_to_their_rounding(kind: str, dtype: torch.dtype) -> None:
    """A row is a sum of two that are each rounded, and then the sum."""
    model = adapted(kind)
    exact = [rows for pair in layer_weights(merged(model)) for rows in pair]
    short = model.to(dtype)
    found = [rows for pair in layer_weights(short) for rows in pair]
    for rows, expected in zip(found, exact, strict=True):
        assert relative_error(rows, expected) < 4 * float(torch.finfo(dtype).eps)
