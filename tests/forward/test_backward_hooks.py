"""A user's backward hooks: attribution would count what they do to gradients, or end in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

FACT = dkn.Fact("a", "w5 w9 w11", "w13 w14")
KNOWN = dkn.Config(filter=dkn.FilterConfig(require_rank_1=False, min_probability=0.0))
DOWN = "model.layers.1.mlp.down_proj"


def halved(_module: nn.Module, grad_input: Any, _grad_output: Any) -> Any:
    return tuple(None if g is None else g * 0.5 for g in grad_input)


def monitor(_module: nn.Module, grad_input: Any, _grad_output: Any) -> None:
    grad_input[0].norm()


def halved_before(_module: nn.Module, grad_output: Any) -> Any:
    return tuple(g * 0.5 for g in grad_output)


def after(hook: Any) -> Callable[[nn.Module], Any]:
    return lambda module: module.register_full_backward_hook(hook)


def before(module: nn.Module) -> Any:
    return module.register_full_backward_pre_hook(halved_before)


@pytest.mark.parametrize("place", [DOWN, "model.layers.0.self_attn.q_proj", "lm_head", ""])
@pytest.mark.parametrize(
    "register", [after(halved), after(monitor), before], ids=["scales", "looks", "before"]
)
def test_a_backward_hook_is_refused_and_named(place: str, register: Any) -> None:
    model = tiny("llama", torch.float32)
    handle = register(model.get_submodule(place))
    module = re.escape(repr(place) if place else "LlamaForCausalLM")
    words = f"expected gradients .* found a backward hook on {module}.*: remove it"
    with pytest.raises(UnsupportedModelError, match=words) as raised:
        dkn.attribute(model, words_tokenizer(), [FACT])
    assert "\n" not in str(raised.value)
    if place:  # torch itself warns of one on the whole model, whatever runs
        with pytest.raises(UnsupportedModelError, match=words):
            dkn.find_dkns(model, words_tokenizer(), [FACT], KNOWN)
    handle.remove()
    found = dkn.attribute(model, words_tokenizer(), [FACT])
    expected = dkn.attribute(tiny("llama", torch.float32), words_tokenizer(), [FACT])
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    "register",
    [
        lambda: torch_module.register_module_full_backward_hook(monitor),
        lambda: torch_module.register_module_full_backward_pre_hook(halved_before),
    ],
    ids=["after", "before"],
)
def test_a_backward_hook_on_all_modules_is_refused(register: Any) -> None:
    handle = register()
    try:
        with pytest.raises(UnsupportedModelError, match=r"a backward hook on all modules.*remove"):
            dkn.attribute(tiny("llama", torch.float32), words_tokenizer(), [FACT])
    finally:
        handle.remove()


def test_without_gradients_backward_hooks_are_harmless() -> None:
    hooked, plain = (tiny("llama", torch.float32) for _ in range(2))
    hooked.get_submodule(DOWN).register_full_backward_hook(monitor)
    hooked.get_submodule(DOWN).register_full_backward_pre_hook(halved_before)
    found, expected = (
        dkn.answer_probability(m, words_tokenizer(), [FACT]) for m in (hooked, plain)
    )
    np.testing.assert_array_equal(found, expected)
    ids = torch.arange(3, 9).unsqueeze(0)
    logits = []
    for model in (hooked, plain):
        with dkn.intervene(model, [[1, 3]], factor=0.0), torch.no_grad():
            logits.append(model(ids).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=0)
