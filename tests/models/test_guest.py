"""The model, and everything global, is as it was found when attribution returns or raises."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dkn_engine.attribution.chunk_scores import ChunkScores
from dkn_engine.errors import UnsupportedModelError
from tests.support.attribution_runs import attributed, fixed
from tests.support.tiny import N_LAYERS, down_of, relative_error, tiny

FAMILIES = ("llama", "gpt2", "gptj")


def run(name: str, model: nn.Module) -> ChunkScores:
    return attributed(name, model, fixed())


def state(model: Any) -> dict[str, Any]:
    """Everything that a stage could leave changed, in a form that compares by value."""
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "training": {k: m.training for k, m in model.named_modules()},
        "requires_grad": {k: p.requires_grad for k, p in model.named_parameters()},
        "grad": {k: p.grad for k, p in model.named_parameters()},
        "modules": [(k, id(m)) for k, m in model.named_modules()],
        "hooks": {k: hooks_of(m) for k, m in model.named_modules()},
        "attributes": {k: sorted(vars(m)) for k, m in model.named_modules()},
        "attention": model.config._attn_implementation,
        "config": model.config.to_dict(),
    }


def hooks_of(module: nn.Module) -> list[list[Any]]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [list(getattr(module, kind).values()) for kind in kinds]


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in before:
        if key == "weights":
            assert before[key].keys() == after[key].keys()
            assert all(torch.equal(v, after[key][k]) for k, v in before[key].items())
        elif key == "grad":
            assert all(v is after[key][k] for k, v in before[key].items())
        else:
            assert before[key] == after[key], key


def lived_in(name: str) -> Any:
    """A model in use: parts in training mode, parts frozen, gradients and hooks of the user's."""
    model = tiny(name)
    modules = list(model.modules())
    for i, module in enumerate(modules):
        module.training = i % 3 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        if i % 4 == 0:
            parameter.grad = torch.full_like(parameter, float(i))
    down_of(name, model, 1).register_forward_hook(lambda _module, _args, _output: None)
    modules[0].register_forward_pre_hook(lambda _module, _args: None)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_in_use_is_left_as_it_was(name: str) -> None:
    model = lived_in(name)
    before = state(model)
    found = run(name, model)
    assert_unchanged(before, state(model))
    assert relative_error(found.scores, run(name, tiny(name)).scores) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_an_eager_model_stays_eager(name: str) -> None:
    model = tiny(name)
    model.set_attn_implementation("eager")
    run(name, model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_is_served_and_kept(name: str, mode: Callable[[], Any]) -> None:
    model = tiny(name)
    expected = run(name, model)
    with mode():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = run(name, model)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    assert np.array_equal(found.scores, expected.scores)


def test_given_baselines_may_come_from_inference_mode() -> None:
    model = tiny("llama")
    with torch.inference_mode():
        table = torch.ones(3, N_LAYERS, 40, dtype=torch.float64)
        found = attributed("llama", model, fixed(baseline="given"), baselines=table)
    expected = attributed("llama", model, fixed(baseline="given"), baselines=table.clone())
    assert np.array_equal(found.scores, expected.scores)


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = tiny("llama")
    with pytest.raises(UnsupportedModelError, match="load the model outside of it"):
        run("llama", model)


class Fault(Exception):
    """Nothing that the engine knows."""


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_exception_inside_a_layer_leaves_nothing_behind(name: str, call: int) -> None:
    """Raised in the prefill, the baselines, the trial of the rows, or during the sweep."""
    model, calls = lived_in(name), 0

    def fail(_module: nn.Module, _args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Fault

    handle = down_of(name, model, 1).register_forward_pre_hook(fail)
    before = state(model)
    with pytest.raises(Fault):
        run(name, model)
    assert_unchanged(before, state(model))
    handle.remove()
    assert np.array_equal(run(name, model).scores, run(name, tiny(name)).scores)


def test_an_exception_on_the_general_path_leaves_nothing_behind() -> None:
    model, calls = lived_in("gptj"), 0

    def fail(_module: nn.Module, _args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Fault

    down_of("gptj", model, 1).register_forward_pre_hook(fail)
    before = state(model)
    with pytest.raises(Fault):
        run("gptj", model)
    assert_unchanged(before, state(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_threads_and_random_states_are_as_found(name: str) -> None:
    model = tiny(name)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002 - the global state is meant
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    threads = torch.get_num_threads(), torch.get_num_interop_threads()
    run(name, model)
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert (torch.get_num_threads(), torch.get_num_interop_threads()) == threads


def test_dropout_is_off_whatever_mode_the_model_was_in() -> None:
    model = tiny("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).train()
    before = torch.get_rng_state()
    found = run("gpt2", model)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(found.scores, run("gpt2", model.eval()).scores)


def test_checkpointing_is_off_whatever_mode_the_model_was_in() -> None:
    expected = run("llama", tiny("llama")).scores
    model = tiny("llama").train()
    model.activation_checkpointing_enable()
    before = state(model)
    assert np.array_equal(run("llama", model).scores, expected)
    assert_unchanged(before, state(model))
    assert model.is_activation_checkpointing
