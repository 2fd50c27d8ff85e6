"""Mixtures of experts behind attribution: edits, connections and the whole of find."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.connections import layer_weights
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from tests.support.guests import state
from tests.support.saved import many_facts
from tests.support.tiny import relative_error
from tests.support.tiny_experts import EXPERTS, ExpertsOracle, tiny_experts
from tests.support.words import words_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*full forward passes:UserWarning")
ROUNDED = 1e-5  # norms compute in float32
FACT = dkn.Fact("a", "w5 w9 w11", "w13 w14")


def zeroed(model: Any, neurons: np.ndarray[Any, Any]) -> Any:
    """A copy in which the neurons' rows of the output projections are 0: nothing of the engine."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, neuron in neurons.tolist():
            block = other.model.layers[layer].mlp
            if not hasattr(block, "experts"):
                block.down_proj.weight[:, neuron] = 0
                continue
            down = block.experts.down_proj
            transposed = block.experts.is_transposed
            width = down.shape[1 if transposed else 2]
            expert, i = divmod(neuron, width)
            if expert >= len(down):
                shared: Any = getattr(
                    block, "shared_experts", getattr(block, "shared_expert", None)
                )
                shared.down_proj.weight[:, neuron - len(down) * width] = 0
            elif transposed:
                down[expert, i] = 0
            else:
                down[expert, :, i] = 0
    return other


def every_third(model: Any) -> np.ndarray[Any, Any]:
    layout = find_layout(model)
    found = [(l, i) for l, width in enumerate(layout.widths) for i in range(0, width, 3)]
    return np.array(found)


@pytest.mark.parametrize("name", EXPERTS)
def test_suppressed_neurons_are_as_rows_that_are_0(name: str) -> None:
    model, tokenizer = tiny_experts(name), words_tokenizer()
    neurons = every_third(model)
    plain = zeroed(model, neurons)
    ids = torch.arange(3, 12).view(1, -1)
    before = state(model)
    with dkn.intervene(model, neurons), torch.no_grad():
        inside = model(input_ids=ids).logits
    assert model.config._experts_implementation == "eager"
    with torch.no_grad():
        expected, own = plain(input_ids=ids).logits, model(input_ids=ids).logits
    assert relative_error(inside, expected) < ROUNDED
    assert relative_error(own, expected) > 1e-2
    for positions in ("answer", "answer_all", "all"):
        found = dkn.answer_probability(
            model, tokenizer, [FACT], suppress=neurons, positions=positions
        )
        if positions == "all":
            by_weights = dkn.answer_probability(plain, tokenizer, [FACT])
            np.testing.assert_allclose(found, by_weights, rtol=1e-4)
    assert state(model) == before


@pytest.mark.parametrize("name", EXPERTS)
def test_connections_are_the_experts_rows(name: str) -> None:
    model = tiny_experts(name)
    oracle = ExpertsOracle(name, model)
    for which in ("gate", "up"):
        found = layer_weights(model, dkn.TopologyConfig(input_weights=which))
        for layer, (w_out, w_in) in enumerate(found):
            assert relative_error(w_out, oracle.rows(layer)) < 1e-6
            assert relative_error(w_in, oracle.reads(layer, which)) < 1e-6


def test_the_norm_in_front_of_the_block_is_folded() -> None:
    model = tiny_experts("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.mul_(torch.linspace(0.5, 2, 24))
    found = layer_weights(model, dkn.TopologyConfig(fold_norm=True))
    oracle = ExpertsOracle("mixtral", model)
    for layer, (_, w_in) in enumerate(found):
        gain = model.model.layers[layer].post_attention_layernorm.weight.detach()
        assert relative_error(w_in, oracle.reads(layer, "gate") * gain) < 1e-5


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "behind_dense"])
def test_find_examines_experts(name: str) -> None:
    model, tokenizer = tiny_experts(name, torch.float32), words_tokenizer()
    before = state(model)
    results = dkn.find_dkns(model, tokenizer, many_facts(model, 8))
    assert state(model) == before
    assert model.config._experts_implementation == "eager"
    known = [r for r in results if r.status == "ok"]
    assert len(known) >= 2
    for r in known:
        assert np.isfinite(r.scores).all()
        assert r.subset_probabilities.size >= 1
    again = dkn.find_dkns(model, tokenizer, many_facts(model, 8))
    for one, other in zip(results, again, strict=True):
        np.testing.assert_array_equal(one.neurons, other.neurons)


def test_nested_interventions_act_together() -> None:
    model = tiny_experts("deepseek_v3")
    neurons = every_third(model)
    first, second = neurons[::2], neurons[1::2]
    ids = torch.arange(3, 12).view(1, -1)
    with torch.no_grad():
        with dkn.intervene(model, first), dkn.intervene(model, second):
            found = model(input_ids=ids).logits
        expected = zeroed(model, neurons)(input_ids=ids).logits
    assert relative_error(found, expected) < ROUNDED


def test_changes_of_weights_are_refused_in_words() -> None:
    model = tiny_experts("mixtral")
    with (
        pytest.raises(UnsupportedModelError, match="mixture of experts, whose weights lie tog"),
        dkn.intervene(model, [[0, 1]], on="weights"),
    ):
        pass


def test_a_block_that_does_something_else_is_refused() -> None:
    model = tiny_experts("mixtral")
    block = model.model.layers[1].mlp
    forward = block.forward
    block.forward = lambda h: (
        forward(h) * (1 + (block.experts.config._experts_implementation == "eager"))
    )
    with pytest.raises(UnsupportedModelError, match="expected experts whose weighted outputs"):
        dkn.answer_probability(model, words_tokenizer(), [FACT])


def test_gradients_at_zeros_are_the_rows_of_experts_that_are_routed_to() -> None:
    model = tiny_experts("mixtral")
    layout = find_layout(model)
    with guest(model, grad=False):
        model(input_ids=torch.arange(3, 6).view(1, -1))
    mixture = layout.mixtures[1]
    x = torch.zeros(3, layout.width, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixture(x).sum(), x)
    assert mixture.routing is not None
    rows = ExpertsOracle("mixtral", model).rows(1).sum(1).reshape(4, -1)
    for token, experts in enumerate(mixture.routing[0].tolist()):
        own = gradient[token].reshape(4, -1)
        for expert in range(4):
            expected = rows[expert] if expert in experts else torch.zeros_like(rows[expert])
            assert torch.allclose(own[expert], expected, atol=1e-12)


def test_a_shared_expert_of_another_kind_is_refused() -> None:
    model = tiny_experts("deepseek_v3")
    shared = model.model.layers[1].mlp.shared_experts
    shared.down_proj = torch.nn.Sequential(shared.down_proj)
    with pytest.raises(UnsupportedModelError, match=r"layers\[1\].* a shared expert of another"):
        find_layout(model)
