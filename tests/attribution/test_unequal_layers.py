"""Layers whose MLPs have different sizes: their scores, and nothing where there is no neuron.

The oracle is a model of equal layers that computes the same: what it has beyond a layer's own
neurons writes nothing, so brute force gives it exactly 0 there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.attribution.attribute_facts import iter_attribute
from dkn_engine.attribution.baselines import masked_baselines, shared_masked_baselines
from dkn_engine.config import AttributionConfig, SelectionConfig
from dkn_engine.errors import UserError
from dkn_engine.forward.contexts import build_contexts
from dkn_engine.forward.prefill import prefill
from dkn_engine.forward.row_check import checked_rows
from dkn_engine.interchange import nnsight_names
from dkn_engine.interchange.knowledge_neurons import KnowledgeNeurons
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from dkn_engine.selection import select_neurons
from tests.support.attribution_runs import (
    FLOAT64,
    attributed,
    fixed,
    given_baselines,
    require_brute_force,
    tolerance,
)
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import MASK_ID, WIDTH, relative_error, sequences
from tests.support.uneven import WIDTHS, uneven
from tests.support.words import text, words_tokenizer

EVERY = [(layer, i) for layer, width in enumerate(WIDTHS) for i in range(width)]
MISSING = np.arange(WIDTH) >= np.array(WIDTHS)[:, None]
FACT = dkn.Fact("a", text([5, 9, 11]), text([13, 14]))


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "gptj", "opt"])
def test_the_two_models_compute_the_same(name: str) -> None:
    model, padded = uneven(name)
    ids = torch.arange(3, 12).view(1, -1)
    with torch.no_grad():
        found, expected = model(input_ids=ids).logits, padded(input_ids=ids).logits
    assert relative_error(found, expected) < 1e-12
    assert find_layout(model).widths == WIDTHS
    assert find_layout(model).width == WIDTH


@pytest.mark.parametrize(
    ("name", "site", "path"),
    [
        *[(name, site, "sweep") for name in ("llama", "phi3") for site in ("post", "pre", "up")],
        ("llama", "gate_act", "sweep"),
        *[("gpt2", site, "sweep") for site in ("post", "pre")],
        *[(name, site, "blocks") for name in ("gptj", "opt") for site in ("post", "pre")],
    ],
)
def test_scores_are_those_of_brute_force(name: str, site: Any, path: str) -> None:
    model, padded = uneven(name)
    found = attributed(name, model, fixed(site=site))
    assert found.path == path
    require_brute_force(found, name, padded, site, allowed=tolerance(name))
    assert (found.scores[:, MISSING] == 0).all()
    assert (found.scores != 0).any(-1).all()


@pytest.mark.parametrize("name", ["llama", "gptj"])
@pytest.mark.parametrize("baseline", ["zero", "given"])
def test_other_baselines(name: str, baseline: str) -> None:
    """What is given for neurons that there are not is not read, whatever it is."""
    model, padded = uneven(name)
    given = given_baselines() if baseline == "given" else None
    config = fixed(baseline=baseline)
    starts: list[Any] = ["zero"] * 3
    if given is not None:
        given[:, torch.from_numpy(MISSING)] = torch.nan
        starts = list(given.nan_to_num())
    found = attributed(name, model, config, baselines=given)
    require_brute_force(found, name, padded, "post", starts=starts, allowed=tolerance(name))
    assert (found.scores[:, MISSING] == 0).all()


@pytest.mark.parametrize("name", ["llama", "gptj"])
@pytest.mark.parametrize("method", ["attribution_patching", "grad_drop"])
def test_scores_of_one_gradient(name: str, method: Any) -> None:
    model, padded = uneven(name)
    config = AttributionConfig(method=method)
    found, expected = (attributed(name, m, config) for m in (model, padded))
    assert relative_error(found.scores, expected.scores) < tolerance(name)
    assert (found.scores[:, MISSING] == 0).all()


@pytest.mark.parametrize("site", ["post", "pre"])
def test_masked_baselines_with_shared_prefixes(site: str) -> None:
    model, padded = uneven("llama")
    layout, contexts = find_layout(model), build_contexts(sequences(), torch.device("cpu"))
    with guest(model, grad=True):
        clean = prefill(model, layout, contexts)
        rows = checked_rows(model, layout, contexts, clean, "auto")
        shared = shared_masked_baselines(rows, site, MASK_ID, 10_000)
        plain = masked_baselines(model, layout, contexts, site, MASK_ID, 10_000)
    assert relative_error(shared, plain) < FLOAT64
    oracle = BruteForce("llama", padded, site)
    for c, (b, token) in enumerate(zip(contexts.sequence, contexts.token, strict=True)):
        one = sequences()[int(b)]
        expected = oracle.masked_baseline(one, one.n_prompt - 1 + int(token))
        expected[torch.from_numpy(MISSING)] = 0
        assert relative_error(plain[c], expected) < FLOAT64


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_scores_are_complete(name: str) -> None:
    model, padded = uneven(name)
    found = attributed(name, model, AttributionConfig(tolerance=1e-5))
    assert found.converged.all()
    oracle = BruteForce(name, padded, "post")
    for scores, delta, one in zip(found.scores, found.convergence_delta, sequences(), strict=True):
        change = oracle.change(one, "masked", "probability").mean(0).numpy()
        assert np.abs(scores.sum(1) - change).max() < 1e-5
        assert np.abs(delta).max() < 1e-5


@pytest.mark.parametrize(
    "config",
    [
        SelectionConfig(method="top_k", top_k=70, max_neurons=200),
        SelectionConfig(method="top_k", top_k=200, max_neurons=200),
        SelectionConfig(method="percentile", percentile=40.0, max_neurons=200),
        SelectionConfig(method="percentile", percentile=90.0),
        SelectionConfig(),
    ],
)
def test_what_is_no_neuron_is_never_selected(config: SelectionConfig) -> None:
    """Most scores are negative, so that zeros are among the highest."""
    scores = np.random.default_rng(0).normal(-0.5, 1, (3, WIDTH))
    scores[MISSING] = 0
    found = select_neurons(scores, config, WIDTHS)
    # The neurons alone, as one layer.
    alone = select_neurons(scores[~MISSING][None], config)
    assert found.neurons.tolist() == [list(EVERY[i]) for _, i in alone.neurons.tolist()]
    assert found.scores.tolist() == alone.scores.tolist()
    with pytest.raises(ValueError, match="of the scores' 3 layers; got 2"):
        select_neurons(scores, config, WIDTHS[:2])


def test_the_highest_scores_are_of_neurons() -> None:
    model, _ = uneven("llama", torch.float32)
    found = dkn.attribute(model, words_tokenizer(), [FACT])
    assert found.widths == WIDTHS
    every = sorted(EVERY, key=lambda n: (-found.scores[0][n], n))
    assert found.top(200)["a"].tolist() == [list(n) for n in every]
    (one,) = iter_attribute(model, words_tokenizer(), [FACT], keep="top")
    assert one.neurons.tolist() == found.top(200)["a"].tolist()
    for options in ({"percentile": 30}, {"threshold": -1e9}):
        coarse = KnowledgeNeurons(model, words_tokenizer()).get_coarse_neurons(
            FACT.prompt, FACT.answer, **options
        )
        assert {tuple(n) for n in coarse} <= set(EVERY)
    assert len(coarse) == len(EVERY)


def test_a_neuron_that_a_layer_does_not_have_is_refused_by_name() -> None:
    model, _ = uneven("llama", torch.float32)
    tokenizer = words_tokenizer()
    words = r"neurons must be below layer 3 and index 20 in layer 2; got \(2, 20\)"
    bad = [[1, 39], [2, 20]]
    with pytest.raises(ValueError, match=words):
        dkn.answer_probability(model, tokenizer, [FACT], suppress=bad)
    with pytest.raises(ValueError, match=words):
        dkn.examine(model, tokenizer, [FACT], bad)
    with pytest.raises(ValueError, match=words):
        dkn.interactions(model, tokenizer, FACT, bad)
    with pytest.raises(ValueError, match=words):
        dkn.faithfulness(model, tokenizer, [FACT], bad)
    for on in ("activations", "weights"):
        with pytest.raises(ValueError, match=words), dkn.intervene(model, bad, on=on):
            pass
    with pytest.raises(UserError, match=words):
        nnsight_names(model, bad)
    with pytest.raises(ValueError, match=words):
        KnowledgeNeurons(model, tokenizer).suppress_knowledge(FACT.prompt, FACT.answer, bad)
    with pytest.raises(ValueError, match=r"below layer 3 and index 40; got \(3, 0\)"):
        dkn.answer_probability(model, tokenizer, [FACT], suppress=[[3, 0]])
