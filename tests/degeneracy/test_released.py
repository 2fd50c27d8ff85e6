"""The published code's way: greedy continuation, its filter, its encoding, end to end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.config import FactsConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, nothing, suppress
from dkn_engine.degeneracy.free_running import free_running
from dkn_engine.degeneracy.functional_filter import examine
from dkn_engine.degeneracy.released_filter import released_family
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.topology.released import released_candidates
from dkn_engine.types import Component
from tests.support.brute_force_edits import edited
from tests.support.tiny import N_LAYERS, WIDTH, sequences, tiny
from tests.support.words import text, words_tokenizer


def greedy(name: str, model: Any, one: AnswerSequence, edit: Edit) -> float:
    """Product of the gold tokens' probabilities, one forward a step, no padding, no batch."""
    ids, total = list(one.ids[: one.n_prompt]), 1.0
    for target in one.targets:
        with edited(name, model, edit, [len(ids) - 1]), torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total *= float(torch.softmax(logits, dim=-1)[target])
        ids.append(int(logits.argmax()))
    return total


def neurons(n: int, seed: int) -> np.ndarray:
    flat = np.random.default_rng(seed).choice(N_LAYERS * WIDTH, n, replace=False)
    return np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)


EDITS = [nothing(), suppress([[1, 7]]), suppress(neurons(20, 1)), suppress(neurons(60, 2))]


@pytest.mark.parametrize("b", [0, 1, 2])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_greedy_probabilities_equal_a_plain_loop(name: str, b: int) -> None:
    model, one = tiny(name), sequences()[b]
    found, *_ = free_running(model, find_layout(model), one, EDITS)
    expected = [greedy(name, model, one, edit) for edit in EDITS]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_each_edit_follows_its_own_tokens() -> None:
    """Teacher-forced probabilities of the same edits differ, and so do the tokens that follow."""
    model, one = tiny("llama"), sequences()[2]
    layout = find_layout(model)
    forced = Prompts(model, layout, [one]).probabilities(EDITS)[:, 0]
    found, *_ = free_running(model, layout, one, EDITS)
    assert not np.isclose(found, forced, rtol=1e-3).all()


def components(sets: list[np.ndarray]) -> tuple[Component, ...]:
    return tuple(Component(s, 0.0, 1.0, 1.0) for s in sets)


def test_clusters_are_kept_that_alone_lower_the_probability_by_less_than_a_share() -> None:
    model, one = tiny("llama"), sequences()[2]
    sets = [neurons(4, seed) for seed in range(12)]
    clean = greedy("llama", model, one, nothing())
    drops = [1 - greedy("llama", model, one, suppress(s)) / clean for s in sets]
    middle = float(np.median(drops))
    found = released_family(model, find_layout(model), one, components(sets), middle)
    assert found == tuple(i for i, drop in enumerate(drops) if drop < middle)
    assert len(found) == 6


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_clusters_are_no_family(n: int) -> None:
    model = tiny("llama")
    some = components([neurons(1, 0)] * n)
    assert released_family(model, find_layout(model), sequences()[0], some, 1.0) == ()


def test_an_answer_without_probability_has_no_family() -> None:
    """p underflows to 0 in the model's own softmax; nothing can be lowered."""
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    one = sequences()[2]
    some = components([neurons(2, 0), neurons(2, 1)])
    layout = find_layout(model)
    assert free_running(model, layout, one, [nothing()])[0][0] == 0
    assert released_family(model, layout, one, some, 0.05) == ()


def test_examine_in_released_mode_takes_the_released_family() -> None:
    model, one = tiny("llama"), sequences()[2]
    some = components([neurons(3, seed) for seed in range(5)])
    located = np.concatenate([c.neurons for c in some])
    located = np.unique(located, axis=0)
    config = dkn.Config(filter=dkn.FilterConfig(method="released", released_max_drop=0.2))
    found = examine(
        Prompts(model, find_layout(model), [one]),
        0,
        some,
        located,
        dkn.Fact("f", "p", "a"),
        config,
    )
    assert found.dkn == released_family(model, find_layout(model), one, some, 0.2)
    assert len(found.dkn) not in (0, len(some))


# --- how its facts are encoded ---


def test_the_models_own_tokens_follow_where_answers_are_not_forced() -> None:
    model, tokenizer = tiny("llama"), words_tokenizer()
    one = sequences()[2]
    prompt, answer = text(one.ids[: one.n_prompt]), text(one.targets)
    forced = encode_sequence(model, tokenizer, prompt, answer, config=FactsConfig())
    free = encode_sequence(
        model, tokenizer, prompt, answer, config=FactsConfig(teacher_forced=False)
    )
    assert forced == one
    ids = list(one.ids[: one.n_prompt])
    for _ in one.targets[1:]:
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert free == AnswerSequence(tuple(ids), one.n_prompt, one.targets)
    assert free.ids != forced.ids


def test_special_tokens_count_as_answer_tokens_where_asked() -> None:
    config = dataclasses.replace(dkn.Config.released().facts, teacher_forced=True)
    found = encode_sequence(tiny("llama"), words_tokenizer(bos=True), "w5", "w9 w8", config=config)
    assert found == AnswerSequence((1, 5, 1, 9), 2, (1, 9, 8))


# --- the whole way ---


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_released_configuration_runs_end_to_end(name: str) -> None:
    model = tiny(name, torch.float32)
    released = dkn.Config.released()
    config = dataclasses.replace(
        released,
        # The tiny models know nothing.
        filter=dataclasses.replace(
            released.filter, require_rank_1=False, min_probability=0.0, released_max_drop=0.3
        ),
        # Their graphs have no structure either, so it takes more neurons and fewer edges to get
        # several clusters.
        selection=dkn.SelectionConfig(threshold=0.01),
        topology=dataclasses.replace(released.topology, end_value=0.05),
        facts_per_chunk=2,
    )
    facts = [
        dkn.Fact(f"f{b}", text(one.ids[: one.n_prompt]), text(one.targets))
        for b, one in enumerate(sequences())
    ]
    results = dkn.find_dkns(model, words_tokenizer(bos=name == "llama"), facts, config)
    assert [r.fact_id for r in results] == [f.id for f in facts]
    layout, tokenizer = find_layout(model), words_tokenizer(bos=name == "llama")
    for fact, result in zip(facts, results, strict=True):
        assert result.status == "ok"
        one = encode_sequence(model, tokenizer, fact.prompt, fact.answer, config=config.facts)
        # LLaMA's <s> is an answer token, too.
        assert len(one.targets) == len(fact.answer.split()) + (name == "llama")
        assert result.n_points.tolist() == [20 * len(one.targets)] * N_LAYERS
        rows = connection_rows(layout, result.neurons, config.topology)
        expected = released_candidates(result.neurons, *rows, config.topology)
        assert [c.neurons.tolist() for c in result.components] == [
            c.neurons.tolist() for c in expected
        ]
        assert result.dkn == released_family(model, layout, one, expected, 0.3)
    # Not all of it is empty.
    assert any(len(r.components) >= 2 for r in results)
    assert any(r.dkn for r in results)
