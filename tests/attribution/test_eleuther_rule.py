"""EleutherAI's ``knowledge-neurons``: its rule for scores, and what its ``enhance`` multiplies.

Scores: from zero, ``n`` points at equal distances, both ends among them, each of the weight 1 / n;
at the input of the non-linearity; behind the model's own tokens, written as text; their mean.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError, UserError
from tests.degeneracy.test_released_chain import CASES, Case
from tests.support.published import Asked
from tests.support.tiny import WIDTH, tiny

N_STEPS = 6
CONFIG = dkn.AttributionConfig(site="pre", baseline="zero", quadrature="linspace", n_steps=N_STEPS)
FACTS = dataclasses.replace(dkn.Config.released().facts, repeat_first_token=False)


@contextmanager
def written(module: torch.nn.Module, points: torch.Tensor) -> Iterator[None]:
    """The module's output at the last position of each copy is one of the points ``[N, F]``."""
    handle = module.register_forward_hook(
        lambda _module, _args, output: torch.cat([output[:, :-1], points[:, None]], dim=1)
    )
    yield
    handle.remove()


def eleuther_scores(asked: Asked, prompt: str, answer: str) -> np.ndarray:
    """``[L, F]`` by a plain loop, the mean over the answer's tokens."""
    targets = asked.tokenizer(answer)["input_ids"]
    rows = []
    for layer, module in enumerate(asked.modules):
        text, total = prompt, torch.zeros(WIDTH, dtype=torch.float64)
        for target in targets:
            ids = asked.ids(text)
            x, logits = asked.activation(ids, layer)
            alphas = torch.linspace(0, 1, N_STEPS, dtype=torch.float64)
            points = (alphas[:, None] * x).requires_grad_(True)  # of as many copies of the text
            with written(module, points):
                ends = asked.model(input_ids=torch.tensor([ids] * N_STEPS)).logits[:, -1]
            p = torch.softmax(ends, dim=-1)[:, target].sum()
            total += torch.autograd.grad(p, points)[0].sum(0) * x / N_STEPS
            text += asked.tokenizer.decode([int(logits.argmax())])
        rows.append((total / len(targets)).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_are_eleutherais(case: Case) -> None:
    asked = case.asked()
    found = dkn.attribute(asked.model, asked.tokenizer, [case.fact], CONFIG, facts_config=FACTS)
    expected = eleuther_scores(asked, case.prompt, case.answer)
    np.testing.assert_allclose(found.scores[0], expected, rtol=2e-6, atol=1e-6 * expected.max())


@pytest.mark.parametrize("rule", ["riemann_left", "riemann_middle", "riemann_right", "trapezoid"])
def test_no_other_rule_gives_these_scores(rule: Any) -> None:
    case = Case("llama", "byte", False, "go")
    asked, config = case.asked(), dataclasses.replace(CONFIG, quadrature=rule)
    found = dkn.attribute(asked.model, asked.tokenizer, [case.fact], config, facts_config=FACTS)
    expected = eleuther_scores(asked, case.prompt, case.answer)
    assert np.abs(found.scores[0] - expected).max() > 1e-3 * np.abs(expected).max()


def test_the_rule_needs_both_ends() -> None:
    with pytest.raises(UserError, match=r"n_steps must be an integer of at least 2; got 1"):
        dkn.AttributionConfig(quadrature="linspace", n_steps=1)


# --- what is multiplied ---

IDS = torch.tensor([[5, 9, 33, 12, 7], [8, 8, 40, 21, 3]])
NEURONS = np.array([[0, 3], [0, 7], [2, 39], [1, 0]])
# Where the input of the non-linearity is made; the first half of Phi-3's fused projection.
IN = {
    "gpt2": "transformer.h.{}.mlp.c_fc",
    "llama": "model.layers.{}.mlp.gate_proj",
    "phi3": "model.layers.{}.mlp.gate_up_proj",
    "opt": "model.decoder.layers.{}.fc1",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "nemotron": "model.layers.{}.mlp.up_proj",
}


def rewritten(name: str, model: Any, factor: float) -> Any:
    """A copy whose weights give ``factor`` times as much before the non-linearity."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, index in NEURONS.tolist():
            made = other.get_submodule(IN[name].format(layer))
            # GPT-2's projections are stored [in, out].
            row = made.weight[:, index] if name == "gpt2" else made.weight[index]
            row *= factor
            if getattr(made, "bias", None) is not None:
                made.bias[index] *= factor
    return other


@pytest.mark.parametrize("factor", [2.0, 0.0, -1.5])
@pytest.mark.parametrize("name", IN)
def test_activations_before_the_non_linearity_are_multiplied(name: str, factor: float) -> None:
    model = tiny(name)
    before = model(input_ids=IDS).logits
    with dkn.intervene(model, NEURONS, factor=factor, site="pre"):
        found = model(input_ids=IDS).logits
    expected = rewritten(name, model, factor)(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with dkn.intervene(model, NEURONS, factor=factor):
        behind = model(input_ids=IDS).logits
    # A zero is the same on both sides of these non-linearities, nothing else is; relu is the same
    # up to a positive factor (OPT), and its square up to the factor's square (Nemotron).
    same = factor == 0 or (name == "opt" and factor > 0)
    assert torch.allclose(found, behind, rtol=1e-6) is same
    assert torch.equal(model(input_ids=IDS).logits, before)


def test_activations_before_the_non_linearity_become_means() -> None:
    model, means = tiny("llama"), np.random.default_rng(0).normal(size=(3, WIDTH))
    seen: list[torch.Tensor] = []
    with dkn.intervene(model, NEURONS, means=means, site="pre"):
        handle = model.model.layers[0].mlp.act_fn.register_forward_pre_hook(
            lambda _module, args: seen.append(args[0])
        )
        model(input_ids=IDS)
    handle.remove()
    (gate,) = seen
    expected = torch.from_numpy(means[0, [3, 7]]).expand(*IDS.shape, 2)
    torch.testing.assert_close(gate[..., [3, 7]], expected, rtol=0, atol=0)


def test_sites_without_meaning_are_refused() -> None:
    model = tiny("llama")
    with (
        pytest.raises(UserError, match=r"site must be one of post, pre; got 'up'"),
        dkn.intervene(model, NEURONS, site="up"),  # type: ignore[arg-type]
    ):
        pass
    with (
        pytest.raises(UserError, match=r"site must be 'post' with on='weights'; got 'pre'"),
        dkn.intervene(model, NEURONS, site="pre", on="weights"),
    ):
        pass
    plain = tiny("gpt2")
    for block in plain.transformer.h:  # a function, which no hook sees
        act = block.mlp.act
        del block.mlp.act
        block.mlp.act = act.forward
    with (
        pytest.raises(UnsupportedModelError, match=r"site='pre' needs the non-linearity to be a"),
        dkn.intervene(plain, NEURONS, site="pre"),
    ):
        pass
