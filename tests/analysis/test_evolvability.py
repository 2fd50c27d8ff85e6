"""Evolvability on a planted model in which only the planted neurons can learn anything."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.analysis.experiments.evolvability import experiment
from dkn_engine.analysis.experiments.evolvability.answers import read_answers
from dkn_engine.analysis.experiments.evolvability.experiment import evolvability
from dkn_engine.analysis.experiments.evolvability.finetune import finetuned
from dkn_engine.analysis.experiments.evolvability.learning_rate import best_rate, loss_by_rate
from dkn_engine.analysis.experiments.evolvability.overlap import overlap, overlap_rows, targets
from dkn_engine.analysis.experiments.evolvability.rephrase import rephrase
from dkn_engine.analysis.kept_tables import to_json
from dkn_engine.config import FactsConfig
from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.statistics.intervals import COUNTED, TOO_FEW
from dkn_engine.statistics.table import Table
from dkn_engine.types import Component, Fact, FactResult
from tests.support.guests import state
from tests.support.planted import (
    ANSWER_WORDS,
    BOTH,
    EITHER,
    ONE,
    RELATION_WORD,
    SPREAD,
    SUBJECT_WORDS,
    WIDTH,
    planted_model,
)
from tests.support.words import text, word, words_tokenizer

SUBJECT, RELATION = SUBJECT_WORDS[0], RELATION_WORD
ANSWER = ANSWER_WORDS[1]  # which the last layer can bring up, but not for this subject


def prompts() -> list[str]:
    """Sixteen that are EITHER's to the model, which reads with equal attention to all words."""
    words = itertools.permutations([SUBJECT] * 4 + [RELATION] * 3)
    different = list(dict.fromkeys(words))
    return [text([*some, RELATION]) for some in different[:16]]


NEW = [
    Fact(f"new-{i}", prompt, word(ANSWER), paraphrases=(prompts()[-1], prompts()[-2]))
    for i, prompt in enumerate(prompts()[:-2])
]
FACTS = [EITHER.fact, BOTH.fact]


def result(planted: Any, degenerate: bool) -> FactResult:
    """What the pipeline finds (see tests/degeneracy/test_planted.py)."""
    sets = [np.array(sorted(s), dtype=np.int32) for s in planted.sets]
    return FactResult(
        planted.fact.id,
        "ok",
        neurons=np.array(sorted(planted.neurons), dtype=np.int32),
        components=tuple(Component(s, 0.0, 1.0, 1.0) for s in sets),
        dkn=tuple(range(len(sets))) if degenerate else (),
    )


RESULTS = [result(EITHER, True), result(BOTH, False)]
HOW: dict[str, Any] = {"n_random": 2, "steps": 25, "lr": 0.02, "stop_loss": None, "threshold": 0.0}
MOVED = "above 0 of the largest"


@torch.no_grad()
def model_of_few() -> Any:
    """The planted model, whose other neurons are made so that they never fire."""
    model = planted_model()
    alive = {*EITHER.neurons, *BOTH.neurons, *((3, i) for i in range(2 * SPREAD))}
    for layer in range(4):
        for i in range(WIDTH):
            if (layer, i) not in alive:
                model.model.layers[layer].mlp.gate_proj.weight[i, ONE] -= 200
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of_few()


@pytest.fixture(scope="module")
def table(model: Any) -> Table:
    return evolvability(model, words_tokenizer(), FACTS, RESULTS, NEW, **HOW)


def test_the_model_is_what_it_is_said_to_be(model: Any) -> None:
    """It says the old answer to the new prompts, and still knows both facts."""
    config = FactsConfig()
    old = [dataclasses.replace(f, answer=EITHER.fact.answer) for f in NEW]
    for fact in (*FACTS, *old):
        one = encode_sequence(model, words_tokenizer(), fact.prompt, fact.answer, config=config)
        assert read_answers(model, [one]).probability[0] > 0.8


def test_a_set_that_reaches_the_answer_learns_and_a_dead_one_cannot(table: Table) -> None:
    for query, n in (("Q_new", len(NEW)), ("Q_au", len(NEW)), ("Q_old", 2)):
        before = table.row("probability", "none", query=query)
        dead = table.row("probability", "Rnd", query=query)
        assert dead.n == before.n == n
        # Not one weight of them moved, so nothing did.
        assert dead.mean == before.mean
        assert table.row("greedy_match", "Rnd", query=query).mean == (query == "Q_old")
    for group in ("D", "N", "mlp", "all"):
        for query in ("Q_new", "Q_au"):
            assert table.row("greedy_match", group, query=query).mean == 1
            assert table.row("probability", group, query=query).mean > 0.9
    # What was learnt contradicts one of the two old facts and leaves the other alone.
    for group in ("D", "N"):
        assert table.row("greedy_match", group, query="Q_old").mean == 0.5


def test_groups_are_compared_over_facts(table: Table) -> None:
    for query in ("Q_new", "Q_au"):
        found = table.comparison("greedy_match", "D", "Rnd", query=query)
        assert (found.mean, found.n, found.verdict) == (1.0, len(NEW), "higher")
        # D is all there is of N, so both are the same training.
        same = table.comparison("probability", "D", "N", query=query)
        assert (same.mean, same.p_value, same.verdict) == (0, 1, "no difference found")
    assert table.comparison("greedy_match", "D", "Rnd", query="Q_old").verdict == "too few to say"


def test_random_neurons_are_the_mean_of_their_draws(table: Table) -> None:
    for query in ("Q_new", "Q_old", "Q_au"):
        draws = [table.row("probability", "Rnd", query=query, draw=str(i)) for i in (1, 2)]
        mean = table.row("probability", "Rnd", query=query).mean
        assert mean == pytest.approx(np.mean([d.mean for d in draws]), rel=1e-12)
        assert all(d.control for d in draws)


def test_overlap_with_what_changed(table: Table) -> None:
    """Only neurons that fire change: all of D is there, which chance would not do, and no Rnd."""
    n = len(EITHER.neurons)
    for trained in ("mlp", "all"):
        for name in ("as many as D", "as many as N", "top 0.01", MOVED):
            found = table.row("overlap", "Rnd", trained=trained, changed=name)
            assert (found.mean, found.n, found.reason) == (0, 2, TOO_FEW)
        mine = table.row("overlap", "D", trained=trained, changed=MOVED)
        chance = table.row("overlap", "D by chance", trained=trained, changed=MOVED)
        assert (mine.mean, mine.n) == (1, n)
        # In layers 1 and 2 nothing but the planted neurons of both facts can fire.
        assert chance.mean <= len(EITHER.neurons | BOTH.neurons) / (2 * WIDTH)
        assert not mine.control
        assert chance.control
        both = table.comparison("overlap", "D", "D by chance", trained=trained, changed=MOVED)
        assert both.verdict == "higher"


def test_settings_and_notes_say_what_was_done(table: Table) -> None:
    n = len(EITHER.neurons)
    assert table.settings["neurons"] == {"D": n, "N": n}
    assert table.settings["lr"] == {"D": 0.02, "N": 0.02, "whole": 0.02}
    expected = {"new": len(NEW), "new but answered before training": 0, "old": 2}
    assert table.settings["facts"] == expected | {"rephrased prompts": 2 * len(NEW)}
    assert any("pooled over 1 facts with a DKN" in note for note in table.notes)
    assert any(f"D {n} and N {n} neurons" in note for note in table.notes)
    assert len(table.notes) == 4


def test_it_is_what_training_by_hand_gives(model: Any, table: Table) -> None:
    neurons = np.array(sorted(EITHER.neurons))
    config = FactsConfig()
    asked = [
        encode_sequence(model, words_tokenizer(), f.prompt, f.answer, config=config) for f in NEW
    ]
    with finetuned(model, words_tokenizer(), NEW, neurons, steps=25, lr=0.02):
        expected = read_answers(model, asked).probability
    found = {
        s.unit: s.value
        for s in table.samples
        if (s.group, s.figure, s.conditions) == ("D", "probability", (("query", "Q_new"),))
    }
    assert list(found.values()) == expected.tolist()
    assert list(found) == [f.id for f in NEW]


def test_the_model_is_a_guest_and_the_seed_says_all(table: Table) -> None:
    model = model_of_few()
    before = state(model)
    counted: list[tuple[int, int]] = []
    again = evolvability(
        model,
        words_tokenizer(),
        FACTS,
        RESULTS,
        NEW,
        progress=lambda *done: counted.append(done),
        **HOW,
    )
    assert state(model) == before
    assert again.samples == table.samples
    assert counted == [(i + 1, 6 * 25) for i in range(6 * 25)]


def test_without_a_dkn_there_is_nothing_but_n(model: Any) -> None:
    results = [result(EITHER, False), result(BOTH, False)]
    found = evolvability(model, words_tokenizer(), FACTS, results, NEW, steps=2, lr=0.01)
    assert list(dict.fromkeys(r.group for r in found.rows if r.figure != "overlap")) == [
        "none",
        "N",
        "mlp",
        "all",
    ]
    assert found.settings["neurons"] == {"N": len(EITHER.neurons | BOTH.neurons)}
    assert not [c for c in found.comparisons if c.figure != "overlap"]
    assert "none of which has a DKN" in found.notes[0]


def test_new_facts_that_are_answered_are_left_out(model: Any) -> None:
    known = dataclasses.replace(NEW[0], id="known", answer=EITHER.fact.answer)
    bad = dataclasses.replace(NEW[1], id="bad", paraphrases=(" ",))
    found = evolvability(model, words_tokenizer(), FACTS, RESULTS, [known, *NEW[:2], bad], **HOW)
    assert found.row("probability", "D", query="Q_new").n == 3
    assert found.row("probability", "D", query="Q_au").n == 2
    assert any("1 new facts were answered" in note for note in found.notes)
    assert any("1 rephrased prompts cannot" in note for note in found.notes)


def test_a_new_fact_of_no_numbers_spoils_no_training(model: Any) -> None:
    """It is left out, as are other words for a fact that the model does not read to numbers."""
    bad, model = 40, copy.deepcopy(model)
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = torch.nan
    how = {**HOW, "steps": 2}
    whole = (model, words_tokenizer(), FACTS, RESULTS)
    expected = evolvability(*whole, NEW[:2], **how)
    spoilt = Fact("spoilt", text([bad, RELATION]), word(ANSWER))
    reworded = (*NEW[0].paraphrases, text([bad, RELATION]))
    given = [dataclasses.replace(NEW[0], paraphrases=reworded), spoilt, NEW[1]]
    found = evolvability(*whole, given, **how, n_rephrased=3)
    assert found.samples == expected.samples
    assert any("1 new facts are left out" in note for note in found.notes)
    assert any("1 rephrased prompts cannot" in note for note in found.notes)
    with pytest.raises(UserError, match="answers 0 of the 1 given and gives 1 no finite"):
        evolvability(*whole, [spoilt], **how)


def test_the_learning_rate_is_chosen_of_the_grid(model: Any) -> None:
    counted: list[int] = []
    rates = {"D": (1e-3, 0.02, 1e30), "N": (0.01,), "whole": (0.005, 1e-4, 0.02)}
    how: dict[str, Any] = {"n_random": 1, "steps": 2, "rate_steps": 4, "rates": rates}
    guest = planted_model()
    found = evolvability(
        guest,
        words_tokenizer(),
        FACTS,
        RESULTS,
        NEW,
        stop_loss=2.0,
        progress=lambda n, _: counted.append(n),
        **how,
    )
    losses = copy.deepcopy(found.settings["loss_by_rate"])
    assert losses["D"].keys() == {"0.001", "0.02", "1e+30"}
    tried = loss_by_rate(guest, words_tokenizer(), NEW, "all", rates["whole"], steps=4)
    # No rate is tried above the first that is good enough.
    assert losses["whole"].keys() == {"0.0001", "0.005"}
    assert tried[1e-4] > 2 >= tried[0.005]
    assert losses["whole"]["0.0001"] == tried[1e-4]
    # Random neurons do not learn it in four steps, so the lowest loss decides; all weights do.
    assert losses["D"].pop("1e+30") is None  # diverged
    assert min(losses["D"].values()) > 2
    best = min(losses["D"], key=losses["D"].get)
    enough = min(float(r) for r, loss in losses["whole"].items() if loss <= 2)
    assert found.settings["lr"] == {"D": float(best), "N": 0.01, "whole": enough}
    assert counted == sorted(counted)
    assert counted[-1] == 7 * 4 + 5 * 2
    assert json.loads(to_json(found))["settings"] == found.settings


def test_a_trial_that_has_learnt_all_is_the_training(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights are their own probe; trainings at the rates found give the same table."""
    trained: list[Any] = []

    def noting(model: Any, tokenizer: Any, facts: Any, trainable: Any, **how: Any) -> Any:
        trained.append(trainable)
        return finetuned(model, tokenizer, facts, trainable, **how)

    monkeypatch.setattr(experiment, "finetuned", noting)
    rates = {"D": (0.02,), "N": (0.02,), "whole": (1e-4, 0.02)}
    how: dict[str, Any] = {"n_random": 1, "steps": 12, "rate_steps": 12, "stop_loss": 0.5}
    counted: list[tuple[int, int]] = []
    whole = (model, words_tokenizer(), FACTS, RESULTS, NEW)
    found = evolvability(*whole, **how, rates=rates, progress=lambda *done: counted.append(done))
    assert [t for t in trained if isinstance(t, str)] == ["mlp"]
    assert counted[-1] == (4 * 12 + 5 * 12,) * 2
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)
    trained.clear()
    given = evolvability(*whole, **how, lr=found.settings["lr"])
    assert [t for t in trained if isinstance(t, str)] == ["mlp", "all"]
    assert found.samples == given.samples
    assert found.rows == given.rows
    assert found.settings["steps_taken"] == given.settings["steps_taken"]
    # A trial that is cut off before the facts are learnt is not what the training would be.
    trained.clear()
    evolvability(*whole, **(how | {"rate_steps": 1}), rates=rates)
    assert [t for t in trained if isinstance(t, str)] == ["mlp", "all"]
    # Nor is one that learns them in more steps than the training has.
    trained.clear()
    evolvability(*whole, **(how | {"steps": 1}), rates=rates)
    assert [t for t in trained if isinstance(t, str)] == ["mlp", "all"]


def test_sets_are_compared_at_equal_learning(model: Any) -> None:
    found = evolvability(
        model, words_tokenizer(), FACTS, RESULTS, NEW, **(HOW | {"steps": 60, "stop_loss": 0.2})
    )
    taken = found.settings["steps_taken"]
    assert taken["Rnd 1"] == taken["Rnd 2"] == 60  # dead neurons never get there
    for group in ("D", "N", "mlp", "all"):
        assert taken[group] < 60
        # The step that was the last lowers it further.
        loss = -np.log(found.row("probability", group, query="Q_new").mean)
        assert 0 < loss < 0.2


def test_the_smallest_rate_that_is_good_enough_decides() -> None:
    losses = {0.1: 2.0, 0.2: 1.0, 0.3: 0.5, 0.4: math.inf}
    assert best_rate(losses, enough=1.0) == 0.2
    assert best_rate(losses, enough=0.4) == best_rate(losses) == 0.3
    assert best_rate({0.3: 1.0, 0.1: 1.0, 0.2: 1.5}) == 0.1
    with pytest.raises(UserError, match="diverged at every one"):
        best_rate({0.1: math.inf}, enough=1.0)


def test_loss_by_rate_is_the_loss_after_training(model: Any) -> None:
    neurons = np.array(sorted(EITHER.neurons))
    config = FactsConfig()
    asked = [
        encode_sequence(model, words_tokenizer(), f.prompt, f.answer, config=config) for f in NEW
    ]
    found = loss_by_rate(model, words_tokenizer(), NEW, neurons, (0.01, 0.02), steps=3)
    for rate, loss in found.items():
        with finetuned(model, words_tokenizer(), NEW, neurons, steps=3, lr=rate):
            p = read_answers(model, asked).probability
        assert loss == pytest.approx(-np.log(p).mean(), rel=1e-12)
    # The gradient of a loss that overflows is not a number, in a later step at the latest.
    assert loss_by_rate(model, words_tokenizer(), NEW, "all", (1e38,), steps=3)[1e38] == math.inf


def test_a_stopped_analysis_goes_on(tmp_path: Path, model: Any, table: Table) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 90:  # step 15 of the fourth training, after its state of step 10
            raise Stop

    how = {**HOW, "checkpoint": tmp_path}
    with pytest.raises(Stop):
        evolvability(model, words_tokenizer(), FACTS, RESULTS, NEW, progress=stop, **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["D", "N", "Rnd-1", "Rnd-2"]
    counted: list[int] = []
    again = evolvability(
        model,
        words_tokenizer(),
        FACTS,
        RESULTS,
        NEW,
        progress=lambda n, _: counted.append(n),
        **how,
    )
    assert again.samples == table.samples
    assert again.rows == table.rows
    # Three trainings were complete, and ten steps of the fourth.
    assert counted == [25, 50, 75, *range(86, 151)]
    with pytest.raises(RunDirectoryError, match="its steps is"):
        evolvability(model, words_tokenizer(), FACTS, RESULTS, NEW, **(how | {"steps": 3}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_facts": []}, "new_facts must hold at least one"),
        ({"new_facts": [NEW[0], NEW[0]]}, "'new-0' twice"),
        ({"new_facts": FACTS}, "it answers 2 of the 2 given"),
        ({"lr": {"D": 0.1}}, "lr must have a value for each of D, N, whole"),
        ({"lr": None, "rates": {"D": (), "N": (0.1,), "whole": (0.1,)}}, "rates must have a value"),
        (
            {"results": [dataclasses.replace(r, status="not_known") for r in RESULTS]},
            "that the model",
        ),
        ({"results": RESULTS[:1]}, "results must be those of the facts"),
        ({"steps": 0}, "steps must be"),
    ],
)
def test_mistakes_are_named(model: Any, change: dict[str, Any], message: str) -> None:
    how = {"facts": FACTS, "results": RESULTS, "new_facts": NEW, **HOW} | change
    with pytest.raises(UserError, match=message):
        evolvability(model, words_tokenizer(), **how)


def test_targets_are_what_changed_most() -> None:
    change = np.arange(20, dtype=np.float64).reshape(2, 10)
    sets = {"D": np.zeros((3, 2), dtype=np.int32), "N": np.zeros((5, 2), dtype=np.int32)}
    found = dict(targets(change, sets, (0.1,), 0.5))
    assert list(found) == ["as many as D", "as many as N", "top 0.1", "above 0.5 of the largest"]
    assert [int(t.sum()) for t in found.values()] == [3, 5, 2, 10]
    assert all(change[t].min() == 20 - t.sum() for t in found.values())


def test_rows_of_an_overlap() -> None:
    target = np.zeros((2, 10), dtype=bool)
    target[1, :4] = True
    d = np.array([[0, 0], [1, 0], [1, 1], [1, 9]], dtype=np.int32)
    draws = [d, np.array([[0, 5], [1, 7], [1, 1], [1, 9]], dtype=np.int32)]
    rows, (compared,) = overlap_rows({"D": d}, draws, target, (("trained", "all"),))
    by_group = {r.group: r for r in rows}
    o = overlap(d, target)
    assert list(by_group) == ["D", "D by chance", "D by chance, any layer", "Rnd"]
    assert (by_group["D"].mean, by_group["D"].n) == (0.5, 4)
    # Of the three in layer 1, four in ten are expected there; of four anywhere, four in twenty.
    assert by_group["D by chance"].mean == pytest.approx(3 * 0.4 / 4)
    assert by_group["D by chance, any layer"].mean == pytest.approx(0.2)
    rnd = by_group["Rnd"]
    assert (rnd.mean, rnd.n, rnd.reason) == (0.375, 2, TOO_FEW)
    assert by_group["D"].reason == COUNTED
    assert (compared.group, compared.against, compared.n) == ("D", "D by chance", 4)
    assert compared.mean == pytest.approx(0.5 - 0.3)
    assert compared.p_value == o.p_value
    assert (compared.ci_low, compared.ci_high) == ((2 - o.high) / 4, (2 - o.low) / 4)


def test_packaged_new_facts_are_new_and_rephrased() -> None:
    new, known = dkn.load_facts("demo-new"), dkn.load_facts("demo")
    assert len(new) == 24
    assert len({f.answer for f in new}) == len({f.subject for f in new}) == 24
    assert not {f.answer for f in new} & {f.answer for f in known}
    assert {f.relation for f in new} < {f.relation for f in known}
    for fact in new:
        assert fact.subject is not None
        assert len(rephrase(fact)) == 3
        # A sentence may begin with the article.
        subject = fact.subject.lower()
        assert all(subject in p.lower() and p != fact.prompt for p in rephrase(fact))


def test_the_demo_model_answers_no_new_fact() -> None:
    model, tokenizer = dkn.load_model("demo", device="cpu")
    facts = dkn.load_facts("demo-new")
    config = FactsConfig()
    asked = [encode_sequence(model, tokenizer, f.prompt, f.answer, config=config) for f in facts]
    found = read_answers(model, asked)
    assert not found.greedy.any()
    assert found.probability.max() < 0.05


def test_progress_is_shown(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = [result(EITHER, False), result(BOTH, False)]
    evolvability(model, words_tokenizer(), FACTS, results, NEW, steps=2, lr=0.01, progress=True)
    assert re.search(r"(\d+)/\1 step", capsys.readouterr().err)
