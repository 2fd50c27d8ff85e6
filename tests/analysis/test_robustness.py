"""Robustness: every treatment against brute force, and a planted fact whose answers are known."""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.analysis.experiments.robustness.experiment import robustness
from dkn_engine.analysis.experiments.robustness.perturb import KINDS, perturb
from dkn_engine.analysis.experiments.robustness.treatments import Treatment, Trial, treatments
from dkn_engine.config import Config, FactsConfig, FilterConfig
from dkn_engine.degeneracy.edits import Edit, enhance, nothing, suppress
from dkn_engine.errors import UserError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.statistics.table import Sample, Table
from dkn_engine.types import Component, Fact, FactResult
from tests.support.brute_force_edits import answer_probability, greedy_tokens
from tests.support.guests import state
from tests.support.planted import BOTH, EITHER, RELATION_WORD, SUBJECT_WORDS, Planted, planted_model
from tests.support.tiny import N_LAYERS, WIDTH, down_of, sequences, tiny
from tests.support.words import text, words_tokenizer

ALL = treatments(("zero", "mean"), (2.0, -0.5), ("answer", "all", "weights"))
GATES = {"gpt2": "transformer.h.{}.mlp.c_fc", "llama": "model.layers.{}.mlp.gate_proj"}


# Treatments, on random models.


def sets() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    flat = [random.choice(N_LAYERS * WIDTH, n, replace=False) for n in (1, 9, 25)]
    return [np.stack(np.unravel_index(f, (N_LAYERS, WIDTH)), axis=1).astype(np.int32) for f in flat]


def means() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((N_LAYERS, WIDTH))


def asked(name: str, model: Any) -> list[AnswerSequence]:
    """One, two and three answer tokens, which the model itself would give; and others."""
    found = sequences()
    for one in sequences():
        answer = greedy_tokens(name, model, one, nothing())
        prompt = one.ids[: one.n_prompt]
        found.append(AnswerSequence((*prompt, *answer[:-1]), one.n_prompt, answer))
    return found


def edit_of(neurons: np.ndarray, t: Treatment) -> Edit:
    if t.action == "enhance":
        return enhance(neurons, t.factor)
    return suppress(neurons, means() if t.value == "mean" else None)


def scaled(name: str, model: Any, neurons: np.ndarray, factor: float) -> Any:
    """A copy with the neurons' rows in and out multiplied."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for layer, i in neurons.tolist():
            gate: Any = changed.get_submodule(GATES[name].format(layer))
            down: Any = down_of(name, changed, layer)
            if name == "gpt2":
                gate.weight[:, i] *= factor
                gate.bias[i] *= factor
                down.weight[i] *= factor
            else:
                gate.weight[i] *= factor
                down.weight[:, i] *= factor
    return changed


@functools.cache
def model_and_questions(name: str) -> tuple[Any, list[AnswerSequence]]:
    """Which treatments leave as they are."""
    model = tiny(name)
    return model, asked(name, model)


@pytest.mark.parametrize("treatment", ALL, ids=lambda t: f"{t.action}-{t.value}-{t.on}")
@pytest.mark.parametrize("name", GATES)
def test_outcomes_equal_brute_force(name: str, treatment: Treatment) -> None:
    model, some = model_and_questions(name)
    outcome = Trial(model, find_layout(model), some, sets(), means=means()).outcome(treatment)
    for s, neurons in enumerate(sets()):
        changed, edit = model, edit_of(neurons, treatment)
        if treatment.on == "weights":
            changed, edit = scaled(name, model, neurons, treatment.factor), nothing()
        positions = "all" if treatment.on == "weights" else treatment.on
        for q, one in enumerate(some):
            p = answer_probability(name, changed, one, edit, positions)
            assert outcome.probability[s, q] == pytest.approx(p, rel=1e-9)
            greedy = greedy_tokens(name, changed, one, edit, positions)
            assert outcome.exact[s, q] == (greedy == one.targets)


def test_treatments_differ_and_break_some_answers() -> None:
    """The comparison with brute force above is one of different things."""
    model = tiny("llama")
    trial = Trial(model, find_layout(model), asked("llama", model), sets(), means=means())
    assert trial.clean.exact[0].tolist() == [False] * 3 + [True] * 3
    found = [trial.outcome(t) for t in ALL]
    tables = np.array(
        [o.probability for t, o in zip(ALL, found, strict=True) if t.as_measured == t]
    )
    assert len(np.unique(tables.round(12).reshape(len(tables), -1), axis=0)) == len(tables)
    assert not all(o.exact[:, 3:].all() for o in found)


def test_suppression_on_weights_is_measured_as_suppression_everywhere() -> None:
    model = tiny("gpt2")
    trial = Trial(model, find_layout(model), sequences(), sets())
    everywhere = trial.outcome(Treatment("suppress", "zero", "all"))
    assert trial.outcome(Treatment("suppress", "zero", "weights")) is everywhere
    for s, neurons in enumerate(sets()):
        changed = scaled("gpt2", model, neurons, 0.0)
        expected = [answer_probability("gpt2", changed, one, nothing()) for one in sequences()]
        np.testing.assert_allclose(everywhere.probability[s], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": ("zero", "one")}, "values must be among zero, mean"),
        ({"on": ("answer", "answer")}, "on must be among answer, all, weights, each once"),
        ({"factors": (1.0,)}, "factors must be different finite numbers"),
        ({"factors": (2.0, 2.0)}, "factors must be"),
        ({"factors": (float("nan"),)}, "factors must be"),
        ({"on": ()}, "nothing to be done"),
        ({"values": ("mean",), "factors": (), "on": ("weights",)}, "nothing to be done"),
        ({"kinds": ("swap",)}, "kinds must be among replace, add, delete"),
        ({"per_kind": 0}, "per_kind must be an integer of at least 1; got 0"),
        ({"n_random": 0}, "n_random must be an integer of at least 1; got 0"),
        ({"n_unrelated": -1}, "n_unrelated must be an integer of at least 0; got -1"),
    ],
)
def test_options_that_are_not_allowed_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measured(planted_model(), [WORDY], **options)


# The planted model. In front of the subject stands a word, so that half of what it carries to the
# end is left: enough for `either`, and with one word more it is not.


def wordy(planted: Planted, fact_id: str, subject: int, before: tuple[int, ...] = (30,)) -> Fact:
    prompt = text([*before, subject, RELATION_WORD])
    paraphrase = text([subject, 31, RELATION_WORD])
    return dataclasses.replace(
        planted.fact, id=fact_id, prompt=prompt, paraphrases=(paraphrase,), relation=fact_id
    )


WORDY = wordy(EITHER, "either", SUBJECT_WORDS[0])
NEEDS_BOTH = wordy(BOTH, "both", SUBJECT_WORDS[1], before=())


def result_of(fact: Fact, planted: Planted, dkn: tuple[int, ...]) -> FactResult:
    neurons = np.array(sorted(planted.neurons), dtype=np.int32)
    components = tuple(
        Component(np.array(sorted(s), dtype=np.int32), 0.5, 1.0, 0.5) for s in planted.sets
    )
    return FactResult(
        fact.id, "ok", answer=fact.answer, neurons=neurons, components=components, dkn=dkn
    )


def measured(model: Any, facts: list[Fact], **options: Any) -> Table:
    results = {
        "either": result_of(WORDY, EITHER, (0, 1, 2)),
        "both": result_of(NEEDS_BOTH, BOTH, ()),
    }
    found = [results[f.id] for f in facts]
    config = Config(filter=FilterConfig(min_probability=0.0))
    return robustness(
        model, words_tokenizer(), facts, found, **{"n_random": 5, "config": config, **options}
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def table(model: Any) -> Table:
    return measured(model, [WORDY, NEEDS_BOTH], factors=(2.0, 4.0))


def value(table: Table, figure: str, group: str, unit: str, **conditions: str) -> float:
    found = [
        s.value
        for s in table.samples
        if (s.unit, s.group, s.figure, dict(s.conditions)) == (unit, group, figure, conditions)
    ]
    assert len(found) == 1
    return found[0]


PLACES = ("answer", "all", "weights")


@pytest.mark.parametrize("on", PLACES)
def test_suppressing_the_dkn_kills_the_answer_and_random_neurons_do_not(
    table: Table, on: str
) -> None:
    under = {"action": "suppress", "value": "zero", "on": on, "query": "clean"}
    assert value(table, "drop", "D", "either", **under) > 0.99
    assert value(table, "log_drop", "D", "either", **under) > 4
    assert value(table, "exact_match", "D", "either", **under) == 0
    assert abs(value(table, "drop", "Rnd", "either", **under)) < 0.01
    assert value(table, "exact_match", "Rnd", "either", **under) == 1
    assert value(table, "exact_match", "none", "either", **under) == 1
    # Other facts have neurons of their own.
    assert abs(value(table, "drop", "D", "either", **under | {"query": "unrelated"})) < 0.01


def test_one_component_alone_does_nothing(model: Any) -> None:
    fact = EITHER.fact
    one = encode_sequence(model, words_tokenizer(), fact.prompt, fact.answer, config=FactsConfig())
    parts = [np.array(sorted(s), dtype=np.int32) for s in EITHER.sets]
    trial = Trial(model, find_layout(model), [one], parts)
    for on in PLACES:
        outcome = trial.outcome(Treatment("suppress", "zero", on))  # type: ignore[arg-type]
        assert outcome.exact.all()
        assert (outcome.probability > 0.9 * trial.clean.probability).all()


@pytest.mark.parametrize("on", PLACES)
def test_enhancement_brings_a_perturbed_fact_back(table: Table, on: str) -> None:
    """One more word leaves too little of the subject for the threshold; four times that will do.

    In the weights twice is enough: the non-linearity is nearly linear there, and what it gives is
    multiplied once more on its way out.
    """
    factor = "x2" if on == "weights" else "x4"
    add = {"action": "enhance", "value": factor, "on": on, "query": "add"}
    assert value(table, "exact_match", "none", "either", **add) == 0
    assert value(table, "exact_match", "D", "either", **add) == 1
    assert value(table, "exact_match", "Rnd", "either", **add) == 0
    assert value(table, "drop_from_clean", "none", "either", **add) > 0.99
    assert value(table, "drop_from_clean", "D", "either", **add) < 0.05
    # Without the relation's word there is nothing to be enhanced: of the perturbed queries that
    # are wrong only the longer one comes back.
    perturbed = add | {"query": "perturbed"}
    n_wrong = sum(
        value(table, "exact_match", "none", "either", **add | {"query": k}) == 0 for k in KINDS
    )
    assert value(table, "recovered", "D", "either", **perturbed) == pytest.approx(1 / n_wrong)
    for group in ("Rnd", "none"):
        assert value(table, "recovered", group, "either", **perturbed) == 0


def test_figures_are_what_their_definitions_say(model: Any, table: Table) -> None:
    """All perturbations of one fact by full forwards, one at a time."""
    tokenizer, seeds = words_tokenizer(), {"seed": 0}
    config = FactsConfig()
    edit = suppress(np.array(sorted(EITHER.neurons)))

    def ask(prompt: str, change: Edit) -> float:
        one = encode_sequence(model, tokenizer, prompt, WORDY.answer, config=config)
        return answer_probability("llama", model, one, change)

    prompts: dict[str, str | None] = {k: perturb(WORDY, k, **seeds) for k in KINDS}
    prompts |= {"clean": WORDY.prompt, "paraphrase": WORDY.paraphrases[0]}
    before = {k: ask(p, nothing()) for k, p in prompts.items() if p is not None}
    after = {k: ask(p, edit) for k, p in prompts.items() if p is not None}
    assert len(before) == 5
    under = {"action": "suppress", "value": "zero", "on": "answer"}
    expected = {k: 1 - after[k] / before[k] for k in before}
    expected["perturbed"] = statistics.mean([expected[k] for k in KINDS])
    for k, drop in expected.items():
        # p is about 1e-3 in float32, its relative error 1e-5 at most.
        assert value(table, "drop", "D", "either", **under, query=k) == pytest.approx(
            drop, abs=1e-4
        )
    logs = np.mean([np.log(before[k] / after[k]) for k in KINDS])
    found = value(table, "log_drop", "D", "either", **under, query="perturbed")
    assert found == pytest.approx(logs, abs=1e-4)
    from_clean = np.mean([1 - after[k] / before["clean"] for k in KINDS])
    found = value(table, "drop_from_clean", "D", "either", **under, query="perturbed")
    assert found == pytest.approx(from_clean, abs=1e-4)


def test_a_fact_without_a_dkn_enters_with_n_and_none(table: Table) -> None:
    groups = {s.group for s in table.samples if s.unit == "both"}
    assert groups == {"N", "none"}
    assert {s.group for s in table.samples if s.unit == "either"} == {"D", "N", "Rnd", "none"}
    assert value(table, "n_neurons", "D", "either") == 12
    under = {"action": "suppress", "value": "zero", "on": "answer", "query": "clean"}
    assert table.row("drop", "N", **under).n == 2
    assert table.row("exact_match", "none", **under).control


def test_only_the_planned_comparisons_are_made(table: Table) -> None:
    made = {(c.figure, c.against, tuple(dict(c.conditions).values())) for c in table.comparisons}
    places = [("suppress", "zero", o) for o in ("answer", "all")]
    places += [("enhance", x, o) for x in ("x2", "x4") for o in PLACES]
    planned = {
        ("log_drop", against, (*place, query))
        for against in ("N", "Rnd")
        for place in places
        for query in ("clean", "perturbed")
    }
    assert made == planned


def test_settings_and_notes_tell_what_was_done(table: Table) -> None:
    assert table.settings["n_random"] == 5
    assert table.settings["factors"] == [2.0, 4.0]
    assert table.seed == 0
    text_of = " ".join(table.notes)
    assert "2 of 2 facts are known" in text_of
    assert "on the 1 of them that have a DKN" in text_of
    assert "perturbed queries wrong" in text_of


def test_a_short_prompt_is_refused_and_counted(model: Any) -> None:
    """A subject alone, and a subject with the answer: nothing there may be deleted."""
    fact = dataclasses.replace(WORDY, prompt=text([SUBJECT_WORDS[0]]), paraphrases=())
    found = measured(model, [fact], on=("answer",), values=("zero",), factors=())
    for kind in KINDS:
        assert any(n.startswith(f"1 queries of kind {kind} do not exist") for n in found.notes)
    # Nor is there another fact that this model knows, to be an unrelated one.
    assert {dict(s.conditions)["query"] for s in found.samples if s.conditions} == {"clean"}


def test_facts_do_not_depend_on_each_other(model: Any) -> None:
    options = {"values": ("zero",), "n_unrelated": 0, "on": ("answer",), "per_kind": 2}
    alone = measured(model, [WORDY], **options)
    together = measured(model, [NEEDS_BOTH, WORDY], **options)
    mine = {key(s): s.value for s in together.samples if s.unit == "either"}
    assert mine.keys() == {key(s) for s in alone.samples}
    for s in alone.samples:
        assert mine[key(s)] == pytest.approx(s.value, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ({"Rnd"}, {"n_random": 4}),
        ({"unrelated"}, {"n_unrelated": 0}),
        ({"perturbed", *KINDS}, {"per_kind": 2}),
    ],
    ids=["random", "unrelated", "perturbed"],
)
def test_the_number_of_one_kind_of_draws_changes_no_other(
    model: Any, changed: set[str], options: dict[str, Any]
) -> None:
    few = {"values": ("zero",), "factors": (), "on": ("all",), "n_random": 3, "per_kind": 1}
    one, other = (
        {(s.unit, *key(s)): s.value for s in measured(model, [NEEDS_BOTH, WORDY], **given).samples}
        for given in (few, few | options)
    )
    kept = [k for k in one if not changed & {k[1], dict(k[3]).get("query")}]
    assert kept
    assert len(kept) < len(one)
    for k in kept:
        # To rounding, which depends on what else is in a batch.
        assert other[k] == pytest.approx(one[k], rel=1e-5, abs=1e-7, nan_ok=True), k


def key(s: Sample) -> tuple[Any, ...]:
    return s.group, s.figure, s.conditions


def test_another_seed_draws_other_neurons_and_perturbations(model: Any) -> None:
    options = {"values": ("zero",), "factors": (), "n_unrelated": 0, "on": ("all",)}
    first, again, other = (measured(model, [WORDY], seed=s, **options) for s in (0, 0, 1))
    assert first.samples == again.samples
    assert first.rows == again.rows
    values = [[s.value for s in t.samples if s.group == "Rnd"] for t in (first, other)]
    assert values[0] != values[1]


def test_the_model_is_left_as_it_was() -> None:
    model = planted_model()
    model.model.layers[1].train()
    model.lm_head.weight.requires_grad_(False)
    before = state(model)
    measured(model, [WORDY], progress=lambda done, of: None)
    assert state(model) == before


def test_unknown_facts_are_left_out_and_none_known_is_refused(model: Any) -> None:
    unknown = dataclasses.replace(result_of(WORDY, EITHER, ()), status="not_known")
    with pytest.raises(UserError, match="knows none of the 1 facts"):
        robustness(model, words_tokenizer(), [WORDY], [unknown])
    with pytest.raises(UserError, match="in their order"):
        robustness(model, words_tokenizer(), [WORDY, NEEDS_BOTH], [unknown])


def test_progress_is_shown(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    measured(model, [WORDY], progress=True)
    assert "1/1 fact" in capsys.readouterr().err
