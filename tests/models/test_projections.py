"""A user's hooks on projections: what attribution reads as a bare weight is one, or is refused.

The oracle of a hook is a model without it, whose weights do what the hook does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import dkn_engine as dkn
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import TopologyConfig
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from tests.models.test_threads import facts
from tests.support.attribution_runs import LEFT, attributed, fixed
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import MASK_ID, act_of, down_of, relative_error, sequences, tiny
from tests.support.words import words_tokenizer

FLOAT64 = 1e-10
LAYER = 1
NEURONS = [[0, 3], [1, 17], [2, 39]]
Hook = Callable[..., Any]


def attribute(model: nn.Module) -> None:
    """For what is refused before a path is chosen."""
    attribute_chunk(model, find_layout(model), sequences(), fixed(), mask_id=MASK_ID)


def scaled(module: Any, factor: float, *, bias: bool) -> None:
    with torch.no_grad():
        module.weight.mul_(factor)
        if bias and module.bias is not None:
            module.bias.mul_(factor)


def times(factor: float) -> Hook:
    return lambda _module, _args, output: output * factor


def input_times(factor: float) -> Hook:
    return lambda _module, args: (args[0] * factor, *args[1:])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("llama", "gpt2", "gpt_neox", "gptj", "opt")),
        *((name, {"baseline": "zero"}) for name in ("llama", "gptj")),
        *((name, {"quadrature": "gauss_legendre"}) for name in ("llama", "gptj")),
    ],
)
def test_a_hook_on_the_input_of_a_down_projection_is_as_weights_that_scale(
    name: str, options: Any
) -> None:
    """By rows (LLaMA) and in full (GPT-J) with each option; what a family adds needs none."""
    model = tiny(name)
    by_weight = copy.deepcopy(model)
    scaled(down_of(name, by_weight, LAYER), 2.0, bias=False)
    expected = attributed(name, by_weight, fixed(**options))
    down_of(name, model, LAYER).register_forward_pre_hook(input_times(2.0))
    found = attributed(name, model, fixed(**options))
    assert relative_error(found.scores, expected.scores) < FLOAT64
    np.testing.assert_allclose(found.convergence_delta, expected.convergence_delta, atol=1e-7)
    assert found.path == expected.path


def test_the_oracle_of_such_a_hook_is_brute_force() -> None:
    """The activation is what the projection multiplies: behind the hook."""
    model = tiny("llama")
    down_of("llama", model, LAYER).register_forward_pre_hook(input_times(2.0))
    some = sequences()[:1]
    expected = BruteForce("llama", model, "post").scores(some[0], LEFT).mean(0)
    found = attributed("llama", model, fixed(), some)
    assert relative_error(found.scores[0], expected) < FLOAT64


@pytest.mark.parametrize("factor", [0.0, 2.0])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_attribution_inside_an_intervention(name: str, factor: float) -> None:
    model = tiny(name)
    with dkn.intervene(model, NEURONS, factor=factor, on="weights"):
        expected = attributed(name, model, fixed())
    with dkn.intervene(model, NEURONS, factor=factor):
        found = attributed(name, model, fixed())
    assert relative_error(found.scores, expected.scores) < FLOAT64


def keeps_its_own(module: nn.Module) -> None:
    """As some tools patch a module: with a forward of the instance."""
    forward = module.forward
    module.forward = lambda x: 1.5 * forward(x)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "times 1.5": lambda down: down.register_forward_hook(times(1.5)),
    "plus something": lambda down: down.register_forward_hook(lambda _m, _a, out: out + 1.0),
    "at the last positions alone": lambda down: down.register_forward_hook(
        lambda _m, _a, out: torch.cat([out[..., :-2, :], out[..., -2:, :] * 0.5], dim=-2)
    ),
    "with keywords": lambda down: down.register_forward_hook(
        lambda _m, _a, _k, out: out * 0.99, with_kwargs=True
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_hook_on_the_output_of_a_down_projection_is_refused(
    name: str, change: str, dtype: torch.dtype
) -> None:
    if change == "with keywords" and dtype is torch.bfloat16:
        pytest.skip("bfloat16 rounds by as much as this hook changes")
    model = tiny(name, dtype)
    CHANGES[change](down_of(name, model, LAYER))
    where = rf"layers\[{LAYER}\]|h\[{LAYER}\]"
    with pytest.raises(UnsupportedModelError, match=f"({where}).*weight and bias.*hook"):
        attribute(model)


def test_global_hooks_that_change_projections_are_refused() -> None:
    model = tiny("llama")
    downs = {id(down_of("llama", model, i)) for i in range(3)}
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _args, output: output * 1.5 if id(module) in downs else None
    )
    try:
        with pytest.raises(UnsupportedModelError, match=r"layers\[0\].mlp.down_proj"):
            attributed("llama", model, fixed())
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_forward_of_the_instance_is_as_weights_that_scale(name: str) -> None:
    model = tiny(name)
    by_weight = copy.deepcopy(model)
    scaled(down_of(name, by_weight, LAYER), 1.5, bias=True)
    expected = attributed(name, by_weight, fixed())
    keeps_its_own(down_of(name, model, LAYER))
    found = attributed(name, model, fixed())
    assert relative_error(found.scores, expected.scores) < FLOAT64


def test_a_forward_of_the_instance_is_refused_where_the_module_does_not_say_its_sizes() -> None:
    model = tiny("gpt2")
    keeps_its_own(down_of("gpt2", model, LAYER))
    with pytest.raises(UnsupportedModelError, match="forward is its own"):
        attribute(model)


@pytest.mark.parametrize("part", ["gate_proj", "up_proj"])
def test_hooks_on_gate_and_up_are_part_of_the_model(part: str) -> None:
    """Attribution does not read their weights."""
    model = tiny("llama")
    by_weight = copy.deepcopy(model)
    scaled(by_weight.get_submodule(f"model.layers.{LAYER}.mlp.{part}"), 1.5, bias=True)
    module = model.get_submodule(f"model.layers.{LAYER}.mlp.{part}")
    module.register_forward_hook(times(1.5))
    for site in ("post", "pre", "up", "gate_act"):
        expected = attributed("llama", by_weight, fixed(site=site))
        found = attributed("llama", model, fixed(site=site))
        assert relative_error(found.scores, expected.scores) < FLOAT64, site


class Louder(nn.Module):
    """A non-linearity that no kernel knows."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = 1.5 * self.act(x)
        return found


@pytest.mark.parametrize("site", ["pre", "gate_act", "up"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_hook_on_the_non_linearity_is_not_left_out_by_kernels(name: str, site: str) -> None:
    if name == "gpt2" and site != "pre":
        pytest.skip("no gated MLP")
    model = tiny(name, torch.float32)
    other = copy.deepcopy(model)
    path, _, leaf = _act_path(name)
    setattr(other.get_submodule(path), leaf, Louder(act_of(name, other, LAYER)))
    expected = attributed(name, other, fixed(site=site))
    act_of(name, model, LAYER).register_forward_hook(times(1.5))
    found = attributed(name, model, fixed(site=site))
    assert relative_error(found.scores, expected.scores) < 1e-5
    if site == "pre":
        with pytest.raises(dkn.BackendError, match="without hooks"):
            attributed(name, model, fixed(site=site, backend="numba"))


def _act_path(name: str) -> tuple[str, str, str]:
    from tests.support.tiny import FAMILIES

    return FAMILIES[name].act.format(LAYER).rpartition(".")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_hook_on_the_head_counts(name: str) -> None:
    model = tiny(name)
    model.lm_head = nn.Linear(24, 61, bias=False, dtype=torch.float64)  # GPT-2 ties it
    by_weight = copy.deepcopy(model)
    scaled(by_weight.lm_head, 0.5, bias=True)
    expected = attributed(name, by_weight, fixed())
    model.lm_head.register_forward_hook(times(0.5))
    found = attributed(name, model, fixed())
    assert relative_error(found.scores, expected.scores) < FLOAT64


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
def test_connections_of_a_hooked_projection_are_refused(part: str) -> None:
    model = tiny("llama")
    module = model.get_submodule(f"model.layers.{LAYER}.mlp.{part}")
    config = TopologyConfig(input_weights="up" if part == "up_proj" else "gate")
    neurons = np.array(NEURONS, dtype=np.int32)
    expected = connection_rows(find_layout(model), neurons, config)
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _m, args, _out: seen.append(args))
    found = connection_rows(find_layout(model), neurons, config)  # this one only looks
    np.testing.assert_equal(found, expected)
    handle.remove()
    for hook in (times(2.0), lambda *_: 1 / 0):
        handle = module.register_forward_hook(hook)
        with pytest.raises(UnsupportedModelError, match=rf"{part}.*weight and bias.*hook"):
            connection_rows(find_layout(model), neurons, config)
        handle.remove()


def test_finding_neurons_refuses_hooked_projections() -> None:
    lenient = dkn.Config(
        attribution=dkn.AttributionConfig(quadrature="gauss_legendre", n_steps=2),
        filter=dkn.FilterConfig(require_rank_1=False, min_probability=0.0, n_random=2),
    )
    for part in ("down_proj", "gate_proj"):
        model = tiny("llama")
        for layer in range(3):
            module = model.get_submodule(f"model.layers.{layer}.mlp.{part}")
            module.register_forward_hook(times(1.5))
        with pytest.raises(UnsupportedModelError, match=part):
            dkn.find_dkns(model, words_tokenizer(), facts(), lenient)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_parametrised_projections_are_read_as_they_compute(name: str) -> None:
    model = tiny(name)
    plain = copy.deepcopy(model)
    for layer in range(3):
        prune.l1_unstructured(down_of(name, model, layer), "weight", amount=0.3)
        prune.l1_unstructured(down_of(name, plain, layer), "weight", amount=0.3)
        prune.remove(down_of(name, plain, layer), "weight")
    prune.remove(down_of(name, model, LAYER + 1), "weight")
    torch.nn.utils.parametrizations.weight_norm(down_of(name, model, LAYER + 1))
    expected = attributed(name, plain, fixed())
    found = attributed(name, model, fixed())
    assert relative_error(found.scores, expected.scores) < FLOAT64
    assert found.path == expected.path
