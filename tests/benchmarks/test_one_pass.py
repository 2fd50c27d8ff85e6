"""The truth that one-pass scores are compared with, by another way of suppressing."""

from __future__ import annotations

import math

import numpy as np
import pytest

import dkn_engine as dkn
from benchmarks.science.one_pass import _ranks, truth
from dkn_engine.models.layout import find_layout
from tests.support.tiny import N_LAYERS, WIDTH, sequence, tiny
from tests.support.words import text, words_tokenizer


def test_effects_are_those_of_suppressing_one_neuron() -> None:
    model, one = tiny("gpt2"), sequence(5, 1)
    neurons = np.array([[0, 3], [0, 39], [1, 7], [2, 0], [2, 11]])
    found = truth(model, find_layout(model), one, neurons)
    fact = dkn.Fact("a", text(one.ids), text(one.targets))
    tokenizer = words_tokenizer()
    whole = dkn.answer_probability(model, tokenizer, fact)[0]
    for i, neuron in enumerate(neurons):
        p = dkn.answer_probability(model, tokenizer, fact, suppress=[neuron])[0]
        assert found["probability"][i] == pytest.approx(whole - p, abs=1e-12)


def test_effects_on_the_logit_add_up_with_the_probability() -> None:
    """A logit's change less that of the logarithm of p is that of the normaliser, equal for all."""
    model, one = tiny("gpt2"), sequence(5, 1)
    every = []
    for target in (4, 9):
        answer = type(one)(one.ids, one.n_prompt, (target,))
        found = truth(model, find_layout(model), answer, np.array([[1, 7]]))
        fact = dkn.Fact("a", text(one.ids), text([target]))
        whole = dkn.answer_probability(model, words_tokenizer(), fact)[0]
        change = math.log(whole) - math.log(whole - found["probability"][0])
        every.append(found["logit"][0] - change)
    assert every[0] == pytest.approx(every[1], abs=1e-9)


def test_a_ranking_by_the_effects_themselves_is_perfect() -> None:
    effect = np.random.default_rng(0).standard_normal(N_LAYERS * WIDTH)
    everything = np.arange(len(effect))
    found = _ranks(effect, np.abs(effect), everything, everything)
    assert found == {
        "spearman_drawn": pytest.approx(1),
        "spearman_first": pytest.approx(1),
        "recall_20": 1,
        "recall_100": 1,
        "missed": 0,
    }
