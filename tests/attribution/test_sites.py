"""The sites ``up`` and ``gate_act`` of gated MLPs, against brute force; refusals of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import (
    BLOCKS,
    FLOAT64,
    LEFT,
    attributed,
    fixed,
    given_baselines,
    require_brute_force,
    tolerance,
)
from tests.support.brute_force_scores import BruteForce
from tests.support.guests import state
from tests.support.tiny import (
    FAMILIES,
    MASK_ID,
    N_LAYERS,
    WIDTH,
    act_of,
    relative_error,
    sequence,
    sequences,
    tiny,
)
from tests.support.words import text, words_tokenizer

GATED = ("llama", "qwen3", "gemma3", "phi3", "mistral", "olmo2", "smollm3", "granite", "gemma2")
SITES = ("up", "gate_act")


def test_these_families_are_the_gated_ones() -> None:
    assert {name for name in FAMILIES if find_layout(tiny(name)).gated} == set(GATED)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", GATED)
def test_masked_baseline_scores_equal_brute_force(name: str, site: str) -> None:
    model = tiny(name)
    found = attributed(name, model, fixed(site=site, quadrature="trapezoid"))
    assert found.path == ("blocks" if name in BLOCKS else "sweep")
    rule = ([0, 0.5, 1], [0.25, 0.5, 0.25])
    require_brute_force(found, name, model, site, rule=rule, allowed=tolerance(name))


@pytest.mark.parametrize("baseline", ["zero", "given"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_other_baselines_are_of_the_site_itself(name: str, site: str, baseline: str) -> None:
    model = tiny(name)
    given = given_baselines() if baseline == "given" else None
    found = attributed(name, model, fixed(site=site, baseline=baseline), baselines=given)
    starts = ("zero",) * 3 if given is None else list(given)
    require_brute_force(found, name, model, site, starts=starts)


@pytest.mark.parametrize("site", SITES)
def test_options_hold_at_the_new_sites(site: str) -> None:
    model = tiny("llama")
    options = {"objective": "log_probability", "multiply_by": "activation", "answer_tokens": "sum"}
    found = attributed("llama", model, fixed(site=site, **options))
    oracle = BruteForce("llama", model, site)
    for scores, one in zip(found.scores, sequences(), strict=True):
        every = oracle.scores(one, LEFT, kind="log_probability", multiply_by="activation")
        assert relative_error(scores, every.sum(0)) < FLOAT64


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("site", SITES)
def test_scores_are_complete(site: Any, baseline: Any) -> None:
    """They sum to the change of the probability, by brute force, as the reported delta says."""
    model = tiny("llama")
    config = AttributionConfig(site=site, baseline=baseline, tolerance=1e-4)
    found = attributed("llama", model, config)
    assert found.converged.all()
    oracle = BruteForce("llama", model, site)
    for i, one in enumerate(sequences()):
        change = oracle.change(one, baseline, "probability").mean(0).numpy()
        scores = found.scores[i]
        # Each layer's scores are within tolerance of the fact's length, so their sum is within
        # sqrt(F) times that.
        allowed = WIDTH**0.5 * 1e-4 * np.linalg.norm(scores)
        assert np.abs(scores.sum(-1) - change).max() < allowed
        assert np.abs(found.convergence_delta[i]).max() < allowed


def test_a_zero_baseline_gives_both_factors_and_their_product_one_path() -> None:
    """Scaling either factor by alpha scales the product, so from zero all three are the same."""
    model = tiny("llama")
    post, up, gate = (
        attributed("llama", model, fixed(site=site, baseline="zero")).scores
        for site in ("post", "up", "gate_act")
    )
    assert relative_error(up, post) < FLOAT64
    assert relative_error(gate, post) < FLOAT64
    masked = [attributed("llama", model, fixed(site=s)).scores for s in ("post", "up", "gate_act")]
    assert relative_error(masked[1], masked[0]) > 0.1
    assert relative_error(masked[2], masked[1]) > 0.1


@pytest.mark.parametrize("site", SITES)
def test_full_forwards_give_the_same(site: str) -> None:
    """The general path, which a strange argument of all layers makes the engine take."""
    model = tiny("llama")
    swept = attributed("llama", model, fixed(site=site))
    model.model.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, {**kwargs, "strange": object()}), with_kwargs=True
    )
    with pytest.warns(UserWarning, match="full forward passes"):
        found = attributed("llama", model, fixed(site=site))
    assert found.path == "general"
    assert relative_error(found.scores, swept.scores) < FLOAT64


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_not_worse_than_brute_force_in_it(dtype: torch.dtype, site: str) -> None:
    """Both against float64 with the same rounded weights; twice, since roundings are chance."""
    model, exact = tiny("llama", dtype), tiny("llama").to(dtype).to(torch.float64)
    found = attributed("llama", model, fixed(site=site))
    assert found.scores.dtype == np.float32
    errors, plain = [], []
    for scores, one in zip(found.scores, sequences(), strict=True):
        expected = BruteForce("llama", exact, site).scores(one, LEFT).mean(0)
        errors.append(relative_error(scores, expected))
        rounded = BruteForce("llama", model, site).scores(one, LEFT).mean(0)
        plain.append(relative_error(rounded, expected))
    assert np.mean(errors) < 2 * np.mean(plain)


def test_the_public_verb_takes_the_site_and_leaves_the_model_as_it_was() -> None:
    model, one = tiny("llama"), sequence(5, 1)
    fact = dkn.Fact("a", text(one.ids[:5]), text(one.targets))
    before = state(model)
    config = fixed(site="up")
    found = dkn.attribute(model, words_tokenizer(), [fact], config)
    assert state(model) == before
    expected = BruteForce("llama", model, "up").scores(one, LEFT).mean(0)
    assert relative_error(found.scores[0], expected.float()) < 1e-6  # scores are float32
    assert words_tokenizer().mask_token_id == MASK_ID


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in GATED])
def test_models_without_a_gate_have_no_such_site(name: str, site: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"site='{site}' needs a gated MLP"):
        attributed_quietly(name, site)


def attributed_quietly(name: str, site: str) -> Any:
    from dkn_engine.attribution.chunk import attribute_chunk

    model = tiny(name)
    return attribute_chunk(
        model, find_layout(model), sequences(), fixed(site=site), mask_id=MASK_ID
    )


@pytest.mark.parametrize("site", ["pre", *SITES])
def test_an_mlp_that_does_more_between_gate_and_projection_is_refused(site: str) -> None:
    """As if a sparsity or a norm stood there: the factor would be wrong without a word."""
    model = tiny("llama")
    act = act_of("llama", model, 1)
    mlp = model.get_submodule("model.layers.1.mlp")

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate = act(mlp.gate_proj(x))
        found: torch.Tensor = mlp.down_proj(gate.clamp(max=0.1) * mlp.up_proj(x))
        return found

    mlp.forward = forward
    with pytest.raises(UnsupportedModelError, match=r"expects act\(gate\) \* up .* site='post'"):
        attributed("llama", model, fixed(site=site))
    assert attributed("llama", model, fixed(site="post")).path == "sweep"


def test_a_non_linearity_that_is_no_module_is_said() -> None:
    model = tiny("llama")
    for layer in range(N_LAYERS):
        mlp = model.get_submodule(f"model.layers.{layer}.mlp")
        del mlp.act_fn
        mlp.act_fn = nn.functional.silu
    with pytest.raises(UnsupportedModelError, match="needs the non-linearity to be a module"):
        attributed("llama", model, fixed(site="gate_act"))
