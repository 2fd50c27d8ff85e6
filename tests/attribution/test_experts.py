"""Mixtures of experts: scores of all experts' neurons against brute force, token by token."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import LEFT, fixed
from tests.support.guests import Boom, broken, state
from tests.support.tiny import MASK_ID, relative_error, sequence, sequences
from tests.support.tiny_experts import EXPERTS, ExpertsOracle, Pass, tiny_experts

# Norms compute in float32 whatever the model's dtype is.
ROUNDED = 1e-5
SHORT = [sequence(4, 1), sequence(3, 2, seed=1)]


@pytest.fixture(autouse=True)
def _full_passes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*full forward passes")
        yield


def attributed(model: Any, config: AttributionConfig, some: Any = SHORT) -> ChunkScores:
    return attribute_chunk(model, find_layout(model), some, config, mask_id=MASK_ID)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_shown_give_the_models_own_logits(name: str) -> None:
    model = tiny_experts(name)
    ids = torch.arange(3, 12).view(1, -1)
    own = model(input_ids=ids).logits.detach()
    layout = find_layout(model)
    ran: list[int] = []
    handles = [
        mlp.down.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, mlp in enumerate(layout.mlps)
    ]
    with guest(model, grad=False):
        shown = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    assert ran == [0, 1, 2]
    assert relative_error(shown, own) < 1e-8
    assert torch.equal(model(input_ids=ids).logits.detach(), own)
    assert model.config._experts_implementation == "eager"


@pytest.mark.parametrize("bad", [6, 40])
def test_a_broken_embedding_spoils_no_fact_without_it(bad: int) -> None:
    """Nor is the model taken for another kind by texts that hold it, such as a trial's."""
    model = tiny_experts("mixtral")
    expected = attributed(model, fixed(baseline="zero"))
    spoilt = AnswerSequence((7, bad, 9), 3, (12,))
    assert not any(bad in one.ids for one in SHORT)
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = torch.nan
    found = attributed(model, fixed(baseline="zero"), [spoilt, *SHORT])
    assert np.isnan(found.scores[0]).any()
    assert relative_error(found.scores[1:], expected.scores) < ROUNDED


@pytest.mark.parametrize("routing", ["frozen", "free"])
@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("name", EXPERTS)
def test_scores_are_those_of_brute_force(name: str, baseline: Any, routing: Any) -> None:
    model = tiny_experts(name)
    oracle = ExpertsOracle(name, model)
    found = attributed(model, fixed(baseline=baseline, routing=routing))
    for scores, one in zip(found.scores, SHORT, strict=True):
        expected = oracle.scores(one, LEFT, baseline, frozen=routing == "frozen")
        assert relative_error(scores, expected) < ROUNDED


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_a_token_is_not_routed_to_score_exactly_0(name: str) -> None:
    model = tiny_experts(name)
    layout, one = find_layout(model), SHORT[0]
    scores = attributed(model, fixed(baseline="masked"), [one]).scores[0]
    run = Pass(one.n_prompt - 1)
    ExpertsOracle(name, model).probabilities([one.ids], one.targets[0], run)
    for layer, mixture in layout.mixtures.items():
        ends = mixture.n_experts * mixture.n_each
        table = scores[layer, :ends].reshape(mixture.n_experts, -1)
        hit = set(run.routing[layer][0].tolist())
        assert {e for e, row in enumerate(table) if row.any()} == hit
        assert len(hit) == 2
        if mixture.n_shared:
            assert scores[layer, ends : mixture.in_features].all()
        assert not scores[layer, mixture.in_features :].any()


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "behind_dense"])
def test_scores_are_complete_with_frozen_routing(name: str) -> None:
    model, one = tiny_experts(name), SHORT[0]
    found = attributed(model, AttributionConfig(tolerance=1e-4), [one])
    assert found.converged.all()
    oracle = ExpertsOracle(name, model)
    x, start, forced = oracle.ends(one, 0, "masked", frozen=True)
    for layer in range(3):
        patches = [(layer, end[layer]) for end in (x, start)]
        p, base = oracle.values(one.ids, one.targets[0], Pass(3, patches, forced))
        assert abs(found.scores[0, layer].sum() - (p - base)) < 1e-4
        assert abs(found.convergence_delta[0, layer]) < 1e-4


def test_with_free_routing_what_jumps_is_the_convergence_delta() -> None:
    """Of many prompts some change experts along the path; the delta says by how much they jump."""
    model, apart = tiny_experts("mixtral"), []
    oracle = ExpertsOracle("mixtral", model)
    some = [sequence(4, 1, seed=s) for s in range(12)]
    rule: dict[str, Any] = {"quadrature": "gauss_legendre", "n_steps": 64}
    found = attributed(model, AttributionConfig(routing="free", **rule), some)
    frozen = attributed(model, AttributionConfig(**rule), some)
    for b, one in enumerate(some):
        x, start, _ = oracle.ends(one, 0, "masked", frozen=False)
        patches = [(layer, end[layer]) for layer in range(3) for end in (x, start)]
        values = oracle.values(one.ids, one.targets[0], Pass(3, patches))
        for layer in range(3):
            p, base = values[2 * layer : 2 * layer + 2]
            left = p - base - found.scores[b, layer].sum()
            assert abs(abs(found.convergence_delta[b, layer]) - abs(left)) < 1e-5
            apart.append(abs(left))
    assert max(apart) > 1e-3  # a jump
    assert np.median(apart) < 1e-4  # most paths have none
    assert np.abs(frozen.convergence_delta).max() < 1e-4


def test_given_baselines_count_for_the_experts_that_are_routed_to() -> None:
    model = tiny_experts("mixtral")
    layout = find_layout(model)
    given = torch.ones(1, layout.n_layers, layout.width, dtype=torch.float64)
    config = fixed(baseline="given")
    found = attribute_chunk(model, layout, SHORT[:1], config, baselines=given)
    assert ((found.scores[0].reshape(3, 4, -1) != 0).any(-1).sum(-1) == 2).all()


def test_the_model_is_left_as_it_was_also_when_a_layer_raises() -> None:
    model = tiny_experts("deepseek_v3")
    before = state(model)
    attributed(model, fixed())
    assert state(model) == before
    assert model.config._experts_implementation == "eager"
    with broken(model.model.layers[2]), pytest.raises(Boom):
        attributed(model, fixed())
    assert state(model) == before
    assert model.config._experts_implementation == "eager"
    assert attributed(model, fixed(), sequences()).probability.all()
