"""Layers whose MLPs have different sizes, behind attribution: nothing draws what is not there."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.analysis import evolvability, fact_check, model_size, robustness, sharing
from dkn_engine.analysis.experiments.evolvability.finetune import finetuned
from dkn_engine.analysis.experiments.evolvability.overlap import overlap, targets
from dkn_engine.config import Config
from dkn_engine.models.connections import layer_weights
from dkn_engine.neurons import random_sets
from dkn_engine.topology import model_merge_tree
from tests.support.saved import many_facts
from tests.support.tiny import WIDTH, relative_error
from tests.support.uneven import WIDTHS, uneven
from tests.support.words import text, words_tokenizer

EVERY = {(layer, i) for layer, width in enumerate(WIDTHS) for i in range(width)}
NEURONS = np.array([[0, 3], [0, 11], [1, 39], [1, 2], [2, 19], [2, 0]], dtype=np.int32)


pytestmark = pytest.mark.filterwarnings("ignore:.*full forward passes:UserWarning")
DRAWING = (
    "degeneracy.controls",
    "degeneracy.covering_choice",
    "analysis.neuron_groups",
    "analysis.experiments.evolvability.experiment",
    "analysis.experiments.fact_check.neuron_scores",
    "analysis.experiments.sharing.experiment",
)
Drawn = dict[str, set[tuple[int, int]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What each part of the engine that draws random neurons has drawn."""
    found: Drawn = {}

    def remember(place: str, *given: Any) -> Any:
        sets = random_sets(*given)
        found.setdefault(place, set()).update(tuple(n) for s in sets for n in s.tolist())
        return sets

    for place in DRAWING:
        name = f"dkn_engine.{place}.random_sets"
        monkeypatch.setattr(name, functools.partial(remember, place))
    return found


def searched(model: Any, n: int = 8, **options: Any) -> dkn.Results:
    config = Config()
    chosen = {"n_random": 12, "n_regrouped": 4, **options}
    topology = {k: chosen.pop(k) for k in ("clustering",) if k in chosen}
    config = dataclasses.replace(
        config,
        filter=dataclasses.replace(config.filter, **chosen),
        topology=dataclasses.replace(config.topology, **topology),
    )
    return dkn.find_dkns(model, words_tokenizer(), many_facts(model, n), config)


def test_random_sets_are_of_the_layers_own_neurons() -> None:
    located = np.array([[0, 0], [2, 5]])
    rng = np.random.default_rng(0)
    drawn = [random_sets([NEURONS[:3], NEURONS[3:]], located, WIDTHS, rng) for _ in range(600)]
    for first, second in drawn:
        assert Counter(first[:, 0]) == {0: 2, 1: 1}
        assert Counter(second[:, 0]) == {1: 1, 2: 2}
    seen = {tuple(n) for sets in drawn for one in sets for n in one.tolist()}
    assert seen == EVERY - {(0, 0), (2, 5)}
    # A layer that is all located is drawn from all the same.
    every = np.array([(0, i) for i in range(WIDTHS[0])])
    (again,) = random_sets([every], every, WIDTHS, rng)
    assert sorted(again[:, 1].tolist()) == list(range(WIDTHS[0]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"suppress_value": "mean"},
        {"clustering": "covering", "n_random_searches": 3},
    ],
)
def test_find_gives_what_it_gives_for_equal_layers(options: dict[str, Any], drawn: Drawn) -> None:
    """But for random controls, whose draws have other neurons to choose from."""
    model, padded = uneven("llama")
    found = searched(model, **options)
    places = DRAWING[:2] if "clustering" in options else DRAWING[:1]
    assert set(places) == set(drawn)
    assert all(some <= EVERY for some in drawn.values())
    expected = searched(padded, **options)
    assert sum(len(r.components) > 1 for r in found) >= 2
    for one, other in zip(found, expected, strict=True):
        assert (one.status, one.dkn) == (other.status, other.dkn)
        assert one.neurons.tolist() == other.neurons.tolist()
        assert {tuple(n) for n in one.neurons.tolist()} <= EVERY
        np.testing.assert_allclose(one.subset_probabilities, other.subset_probabilities, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gptj"])
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_suppression_is_that_of_equal_layers(name: str, positions: Any) -> None:
    model, padded = uneven(name)
    fact = dkn.Fact("a", text([5, 9, 11]), text([13, 14]))
    found, expected, clean = (
        dkn.answer_probability(m, words_tokenizer(), [fact], suppress=some, positions=positions)
        for m, some in ((model, NEURONS), (padded, NEURONS), (padded, None))
    )
    assert relative_error(found, expected) < 1e-6
    assert relative_error(clean, expected) > 1e-2


def test_the_whole_model_s_topology_is_of_its_neurons() -> None:
    model, padded = uneven("llama")
    rows, wider = layer_weights(model), layer_weights(padded)
    for width, own, other in zip(WIDTHS, rows, wider, strict=True):
        for a, b in zip(own, other, strict=True):
            assert a.shape == (width, 24)
            assert np.array_equal(a, b[:width])
    tree = model_merge_tree(rows)
    assert tree.widths == WIDTHS
    assert {tuple(n) for n in tree.neurons(np.arange(sum(WIDTHS))).tolist()} == EVERY
    assert model_size(model).mlp_width == WIDTH


def test_training_all_neurons_changes_those_that_there_are() -> None:
    model, _ = uneven("llama", torch.float32)
    fact = [dkn.Fact("a", text([5, 9, 11]), text([13]))]
    kwargs: dict[str, Any] = {"trainable": "mlp", "steps": 2, "lr": 1e-2}
    with finetuned(model, words_tokenizer(), fact, **kwargs) as trained:
        change = trained.neuron_change()
    there = {tuple(n) for n in np.argwhere(~np.isnan(change)).tolist()}
    assert there == EVERY
    assert (change[~np.isnan(change)] > 0).all()
    for name, target in targets(change, {"N": NEURONS}, (0.5,), 0.3):
        assert {tuple(n) for n in np.argwhere(target).tolist()} <= EVERY
        if name == "top 0.5":
            assert target.sum() == round(len(EVERY) / 2)
        among = np.array(WIDTHS)
        anywhere = overlap(NEURONS, target, by_layer=False, among=among)
        assert anywhere.expected == pytest.approx(len(NEURONS) * target.sum() / len(EVERY))
        matched = overlap(NEURONS, target, among=among)
        assert matched.expected == pytest.approx(2 * (target.sum(1) / among).sum())


def test_analyses_draw_neurons_that_there_are(drawn: Drawn) -> None:
    model, _ = uneven("llama", torch.float32)
    tokenizer, facts = words_tokenizer(), many_facts(model, 8)
    results = [
        dataclasses.replace(r, dkn=tuple(range(len(r.components))))
        for r in dkn.find_dkns(model, tokenizer, facts)
    ]
    assert sum(bool(r.dkn) for r in results) >= 2
    assert sharing(model, tokenizer, facts, results).rows
    assert robustness(model, tokenizer, facts, results, n_random=20).rows
    new = [dkn.Fact("new", text([4, 7]), text([33]))]
    trained: dict[str, Any] = {"steps": 2, "n_random": 1, "lr": 1e-3}
    assert evolvability(model, tokenizer, facts, results, new, **trained).rows
    assert fact_check(model, tokenizer, facts, results, n_random=20, queries=("short",)).rows
    assert set(drawn) >= set(DRAWING[2:])
    for place in DRAWING[2:]:
        assert {layer for layer, _ in drawn[place]} == {0, 1, 2}
        assert drawn[place] <= EVERY
