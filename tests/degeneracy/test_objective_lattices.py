"""Lattices and controls with an objective beside probabilities, by brute force; whole runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig, Config, FilterConfig
from dkn_engine.degeneracy.control_subsets import Subsets
from dkn_engine.degeneracy.controls import average
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.functional_filter import examine
from dkn_engine.degeneracy.lattice import Lattice, drops, members_of
from dkn_engine.degeneracy.objectives import Objective
from dkn_engine.degeneracy.reference_facts import Reference
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.neurons import random_sets
from dkn_engine.seeds import generator
from dkn_engine.types import Component, Degeneracy, Drops, Fact
from tests.degeneracy.test_objectives import KINDS, WRONG, behind, decoders_facts
from tests.run.test_pipeline import assert_equal
from tests.support.brute_force_objectives import objectives
from tests.support.guests import Boom
from tests.support.tiny import WIDTH, sequence, tiny
from tests.support.words import text, words_tokenizer

SETS = [
    np.array([[0, 1], [0, 2], [1, 5]], dtype=np.int32),
    np.array([[1, 6], [2, 0]], dtype=np.int32),
    np.array([[0, 9], [2, 3]], dtype=np.int32),
]
LOCATED = np.concatenate([*SETS, np.array([[0, 30], [1, 31]], dtype=np.int32)])
FACT = Fact("f", "w5 w9", "w13", subject="s")
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def contrasted(shape: tuple[int, int], seed: int) -> AnswerSequence:
    gold = sequence(*shape, seed=seed)
    return dataclasses.replace(gold, against=tuple(behind(gold, w) for w in WRONG[:2]))


def off(sets: Sequence[np.ndarray], mask: int, means: Any = None) -> Any:
    chosen = [sets[i] for i in members_of(mask)]
    return suppress(np.concatenate([np.empty((0, 2), np.int32), *chosen]), means)


def by_force(
    model: Any, one: AnswerSequence, kind: str, sets: Sequence[np.ndarray] = SETS, means: Any = None
) -> list[float]:
    """Of every subset."""
    masks = range(1 << len(sets))
    return objectives("llama", model, one, [off(sets, m, means) for m in masks], kind=kind)


def ends(values: Sequence[float]) -> list[float]:
    """Of a lattice of three: nothing, each alone, all."""
    return [values[m] for m in (0, 1, 2, 4, 7)]


def examined(
    model: Any, kind: str | None, filters: FilterConfig
) -> tuple[Degeneracy, list[AnswerSequence], Reference]:
    """The last of three facts with two held-out prompts and eight reference facts."""
    asked = None if kind is None else Objective(kind)
    read: dict[str, Any] = {"warn": False, "objective": asked}
    layout = find_layout(model)
    prompts = Prompts(model, layout, decoders_facts(), **read)
    held_out = [contrasted((4, 2), seed) for seed in (20, 21)]
    others = [contrasted((4, 1 + s % 2), s) for s in range(10, 18)]
    unrelated = Prompts(model, layout, others, **read)
    facts = tuple(Fact(f"r{i}", f"w{i}", f"w{i + 40}", subject=f"r{i}") for i in range(8))
    means = unrelated.first_activations().mean(0)
    reference = Reference(facts, unrelated, np.ones(8, bool), means)
    found = examine(
        prompts,
        2,
        tuple(Component(s, 0.0, 1.0, 1.0 - 0.1 * i) for i, s in enumerate(SETS)),
        LOCATED,
        FACT,
        Config(filter=filters),
        paraphrases=Prompts(model, layout, held_out, **read),
        reference=reference,
    )
    return found, held_out, reference


EVERY = FilterConfig(require_rank_1=False, min_probability=0.0, control_precision=0.0, n_random=4)


@pytest.mark.parametrize("kind", KINDS)
def test_lattice_and_controls_equal_brute_force(kind: str) -> None:
    model = tiny("llama")
    found, held_out, reference = examined(model, kind, EVERY)
    own = decoders_facts()[2]
    lattice = by_force(model, own, kind)
    np.testing.assert_allclose(found.subset_objective, lattice, **CLOSE)
    assert found.candidates is not None
    np.testing.assert_allclose(found.candidates.objective, ends(lattice), **CLOSE)

    on_paraphrases = [ends(by_force(model, one, kind)) for one in held_out]
    agree(found, "paraphrases", on_paraphrases)
    with_means = ends(by_force(model, own, kind, means=reference.means))
    agree(found, "mean_ablation", [with_means])
    draws = generator(0, FACT.id, "random neurons")
    drawn = [random_sets(SETS, LOCATED, WIDTH, draws) for _ in range(4)]
    agree(found, "random", [ends(by_force(model, own, kind, sets)) for sets in drawn])
    chosen = reference.unrelated(FACT, 3, generator(0, FACT.id, "unrelated facts"))
    others = [reference.prompts.sequences[b] for b in chosen]
    agree(found, "unrelated", [ends(by_force(model, one, kind)) for one in others])


def agree(found: Degeneracy, control: str, measured: list[list[float]]) -> None:
    expected = np.mean(measured, axis=0)
    np.testing.assert_allclose(found.controls[control].objective, expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_decisions_stay_with_probabilities(kind: str) -> None:
    """All that is not the objective is as without one, whatever the precision of the controls."""
    model = tiny("llama")
    loose = dataclasses.replace(EVERY, min_alone=0.0, max_none=1.0)
    for filters in (EVERY, loose, dataclasses.replace(loose, control_precision=0.02, n_random=12)):
        found, *_ = examined(model, kind, filters)
        plain, *_ = examined(model, None, filters)
        assert (found.dkn, found.null_passing) == (plain.dkn, plain.null_passing)
        np.testing.assert_allclose(found.subset_probabilities, plain.subset_probabilities, **CLOSE)
        assert not len(plain.subset_objective)
        assert found.controls.keys() == plain.controls.keys()
        for name, control in found.controls.items():
            assert control.n == plain.controls[name].n
            assert control.full_drop == pytest.approx(plain.controls[name].full_drop, abs=1e-8)
            assert len(control.objective) == 2 + len(found.dkn or found.components)
            assert np.isfinite(control.objective).all()
            assert plain.controls[name].objective == ()


# --- arithmetic ---


def test_a_lattice_says_what_its_ends_are() -> None:
    values = np.arange(8.0) ** 2
    lattice = Lattice(3, np.arange(8), np.full(8, 0.5), values)
    assert lattice.objectives() == (0.0, 1.0, 4.0, 16.0, 49.0)
    assert drops(lattice).objective == lattice.objectives()
    inside = lattice.restrict([2, 0])  # whose bits are 1 and 2 of the smaller one
    assert inside.objectives() == (0.0, 16.0, 1.0, 25.0)
    sampled = Lattice(3, np.array([0, 2, 7]), np.full(3, 0.5), values[[0, 2, 7]])
    np.testing.assert_array_equal(sampled.objectives(), [0.0, math.nan, 4.0, math.nan, 49.0])
    assert Lattice(3, np.arange(8), np.full(8, 0.5)).objectives() == ()
    nowhere = drops(Lattice(3, np.arange(8), np.zeros(8), values))
    assert nowhere.objective == lattice.objectives()
    assert lattice.restrict([]).objectives() == (0.0, 0.0)


def test_averages_are_over_the_measurements_that_have_the_value() -> None:
    some = [
        Drops(0.1, 0.2, objective=(1.0, math.nan, 3.0)),
        Drops(0.1, 0.2),
        Drops(0.1, 0.2, objective=(2.0, 5.0, 4.0)),
    ]
    assert average(some).objective == (1.5, 5.0, 3.5)
    assert average([Drops(0.1, 0.2)]).objective == ()
    precise = Subsets.of(3, 0.05, np.random.default_rng(0))
    lattice = Lattice(3, np.arange(8), np.exp(-0.1 * np.arange(8)), np.arange(8.0))
    assert precise.drops(lattice).objective == lattice.objectives()


# --- whole runs ---


def config_of(kind: Any, size: int = 2) -> Config:
    return Config(
        facts_per_chunk=size,
        attribution=AttributionConfig(objective=kind, quadrature="riemann_left", n_steps=3),
        filter=FilterConfig(
            min_probability=0.0, require_rank_1=False, min_alone=0.0, max_none=1.0, n_random=2
        ),
    )


def facts() -> list[Fact]:
    found = []
    for i, one in enumerate(decoders_facts()):
        prompt, wrong = one.ids[: one.n_prompt], tuple(text(w.targets) for w in one.against)
        held_out = (text(sequence(4, 1, seed=30 + i).ids),)
        names = (f"f{i}", text(prompt), text(one.targets))
        found.append(Fact(*names, subject=f"s{i}", paraphrases=held_out, wrong_answers=wrong))
    return found


def run(model: Any, config: Config, **options: Any) -> Any:
    return dkn.find_dkns(model, words_tokenizer(), facts(), config, **options)


def encoded(fact: Fact, prompt: str, model: Any) -> AnswerSequence:
    return encode_sequence(
        model,
        words_tokenizer(),
        prompt,
        fact.answer,
        config=dkn.FactsConfig(),
        wrong_answers=fact.wrong_answers,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_a_run_has_the_objective_of_every_subset(name: str, kind: str) -> None:
    model = tiny(name)
    results = run(model, config_of(kind))
    assert any(len(r.components) >= 2 for r in results)
    for fact, result in zip(facts(), results, strict=True):
        sets = [c.neurons for c in result.components]
        for prompt, masks, found in (
            (fact.prompt, result.subset_masks.tolist(), result.subset_objective),
            (
                fact.paraphrases[0],
                [0, *(1 << i for i in result.dkn), sum(1 << i for i in result.dkn)],
                result.controls["paraphrases"].objective if result.dkn else None,
            ),
        ):
            if found is None:
                continue
            one = encoded(fact, prompt, model)
            edits = [off(sets, m) for m in masks]
            expected = objectives(name, model, one, edits, kind=kind)
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_a_run_by_the_probability_has_none() -> None:
    for result in run(tiny("llama"), config_of("probability")):
        assert result.subset_objective.shape == (0,)
        assert all(control.objective == () for control in result.controls.values())
        assert result.candidates is None or result.candidates.objective == ()


@pytest.mark.parametrize("size", [1, 3])
def test_it_does_not_depend_on_the_chunk_size(size: int) -> None:
    model = tiny("llama")
    for found, expected in zip(
        run(model, config_of("logit_difference", size)),
        run(model, config_of("logit_difference")),
        strict=True,
    ):
        np.testing.assert_allclose(found.subset_objective, expected.subset_objective, **CLOSE)
        for name, control in expected.controls.items():
            np.testing.assert_allclose(found.controls[name].objective, control.objective, **CLOSE)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    model, config = tiny("llama", torch.float32), config_of("logit_difference")
    whole = run(model, config, out=tmp_path / "whole")
    assert_equal(dkn.read_results(tmp_path / "whole"), whole)
    assert any(len(r.subset_objective) for r in whole)

    def stop(done: int, _of: int) -> None:
        raise Boom

    with pytest.raises(Boom):
        run(model, config, out=tmp_path / "stopped", progress=stop)
    assert len(dkn.read_results(tmp_path / "stopped")) == 2
    assert_equal(run(model, config, out=tmp_path / "stopped"), whole)


def test_given_neurons_of_a_fact_without_wrong_answers_have_none() -> None:
    model, neurons = tiny("llama"), np.concatenate(SETS)
    config = config_of("logit_difference")
    bare = dataclasses.replace(facts()[0], wrong_answers=())
    for fact in (bare, facts()[0]):
        (result,) = dkn.examine(model, words_tokenizer(), fact, neurons, config)
        assert result.status == "ok"
        assert len(result.subset_objective) == len(fact.wrong_answers and result.subset_masks)
        assert "random" in result.controls
        assert (result.controls["random"].objective == ()) == (fact is bare)
