"""Fact checking on a planted model: neurons that must tell true from false, others that cannot."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import f1_score, roc_auc_score

from dkn_engine.analysis.experiments.fact_check.detection import cross_fitted
from dkn_engine.analysis.experiments.fact_check.experiment import fact_check
from dkn_engine.analysis.experiments.fact_check.neuron_scores import deal
from dkn_engine.analysis.experiments.fact_check.statements import make_statements
from dkn_engine.attribution import attribute
from dkn_engine.config import AttributionConfig, Config
from dkn_engine.errors import UserError
from dkn_engine.statistics.table import Table
from dkn_engine.types import Component, Fact, FactResult
from tests.support.guests import state
from tests.support.planted import EITHER, RELATION_WORD, SUBJECT_WORDS, planted_model
from tests.support.words import text, words_tokenizer

SUBJECT = SUBJECT_WORDS[0]
TEMPLATES = {"plain": {"template": "w40 {statement} w41", "yes": "w42", "no": "w43"}}


def facts_of(n: int = 12) -> list[Fact]:
    """One planted fact behind different words, as that many facts of two relations."""
    return [
        Fact(
            f"f{i}",
            text([25 + i, SUBJECT, RELATION_WORD]),
            EITHER.fact.answer,
            relation=f"r{i % 2}",
            paraphrases=(text([SUBJECT, 25 + i, RELATION_WORD]),) if i < 8 else (),
            wrong_answers=(text([45 + i % 3]), text([48])),
        )
        for i in range(n)
    ]


def result_of(fact: Fact, *, dkn: bool = True) -> FactResult:
    components = tuple(
        Component(np.array(sorted(s), dtype=np.int32), 0.5, 1.0, 0.5) for s in EITHER.sets
    )
    return FactResult(
        fact.id,
        "ok",
        answer=fact.answer,
        neurons=np.array(sorted(EITHER.neurons), dtype=np.int32),
        components=components,
        dkn=(0, 1, 2) if dkn else (),
    )


def checked(model: Any, facts: list[Fact], results: list[FactResult], **options: Any) -> Table:
    options = {"n_random": 20, "templates": TEMPLATES} | options
    # The long templates are one unknown word after another to this tokenizer.
    options = {"queries": ("short", "paraphrase")} | options
    return fact_check(model, words_tokenizer(), facts, results, **options)


FACTS = facts_of()
# The last four have no DKN of their own.
RESULTS = [result_of(f, dkn=i < 8) for i, f in enumerate(FACTS)]


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def table(model: Any) -> Table:
    return checked(model, FACTS, RESULTS)


@pytest.mark.parametrize("query", ["short", "paraphrase"])
@pytest.mark.parametrize("setting", ["golden", "practical"])
def test_planted_neurons_separate_and_random_ones_do_not(
    table: Table, setting: str, query: str
) -> None:
    under = {"setting": setting, "query": query, "facts": "with DKN"}
    for scorer in ("D", "N", "prob"):
        row = table.row("auroc", scorer, **under)
        low = binomtest(row.n, row.n).proportion_ci(0.95, method="wilson").low
        assert (row.mean, row.ci_low, row.ci_high) == pytest.approx((1, low, 1))
    # Scores of random neurons are noise, which no label has a part in: on average over 20 draws a
    # half, within four standard errors of a rank sum (0.1 a draw of 12 and 12 statements at most).
    random = table.row("auroc", "Rnd", **under)
    assert abs(random.mean - 0.5) < 0.2
    assert random.control
    fitted = under | {"threshold": "fitted"}
    assert table.row("f1", "D", **fitted).mean == 1
    assert table.row("precision", "D", **fitted).mean == 1
    assert table.row("recall", "D", **fitted).mean == 1
    assert table.row("ranked_right", "D", **under | {"facts": "all"}).mean == 1


def test_facts_without_a_dkn_count_where_others_teach(table: Table) -> None:
    golden = {"setting": "golden", "query": "short", "facts": "all"}
    practical = golden | {"setting": "practical"}
    assert table.row("auroc", "D", **golden).n == 8
    assert table.row("auroc", "D", **practical).n == 12
    for scorer in ("N", "prob", "ask plain"):
        assert table.row("auroc", scorer, **golden).n == 12
        assert table.row("auroc", scorer, **golden | {"facts": "with DKN"}).n == 8
    assert table.row("auroc", "N", **golden | {"query": "paraphrase"}).n == 8
    notes = " ".join(table.notes)
    assert "about 12 of 12 facts" in notes
    assert "8 have a DKN" in notes
    assert "D to 12 facts" in notes


def test_comparisons_are_of_auroc_over_the_same_facts(table: Table) -> None:
    assert len(table.comparisons) == 2 * 2 * 3
    for c in table.comparisons:
        assert (c.figure, c.group) == ("auroc", "D")
        row = {name: table.row("auroc", name, **dict(c.conditions)) for name in ("D", c.against)}
        assert c.mean == pytest.approx(row["D"].mean - row[c.against].mean)
        assert c.n == row["D"].n
        if c.against in {"N", "prob"}:
            assert c.verdict == "no difference found"
        else:
            assert 2 / 2**c.n <= c.p_value < 0.05
            assert 0 < c.ci_low < c.mean < c.ci_high


def test_figures_are_those_of_scores_taken_one_by_one(model: Any) -> None:
    """Attribution by the public verb, AUROC and F1 by scikit-learn, on a model without a plan."""
    facts = [dataclasses.replace(f, answer=text([30 + i % 9])) for i, f in enumerate(facts_of(9))]
    # Neurons of another layer and half of them: not those that separate.
    own = np.array([[3, i] for i in range(0, 240, 3)], dtype=np.int32)
    part = Component(own[:7], 0.5, 1.0, 0.5)
    results = [
        dataclasses.replace(result_of(f), neurons=own, components=(part,), dkn=(0,)) for f in facts
    ]
    found = checked(model, facts, results, queries=("short",), n_folds=3)
    statements, _ = make_statements(
        [(f, f.answer) for f in facts], facts, ("short",), lambda *_: True, seed=0
    )
    stated = [Fact(str(i), s.prompt, s.answer) for i, s in enumerate(statements)]
    given = attribute(model, words_tokenizer(), stated, AttributionConfig(tolerance=1e-2))
    labels = np.array([s.is_true for s in statements])
    folds = deal(facts, 3, 0)
    fold = np.array([folds[s.fact_id] for s in statements])
    under = {"setting": "golden", "query": "short", "facts": "all"}
    expected = {
        "D": given.scores[:, part.neurons[:, 0], part.neurons[:, 1]].mean(1),
        "N": given.scores[:, own[:, 0], own[:, 1]].mean(1),
        "prob": np.log(given.probability),
    }
    for scorer, scores in expected.items():
        area = found.row("auroc", scorer, **under).mean
        assert area == pytest.approx(roc_auc_score(labels, scores))
        called = scores > cross_fitted(scores.astype(float), labels, fold)
        f1 = found.row("f1", scorer, **under, threshold="fitted").mean
        assert f1 == pytest.approx(f1_score(labels, called))


def test_asking_has_a_decision_without_a_threshold(table: Table) -> None:
    under = {"setting": "golden", "query": "short", "facts": "all"}
    free = {f: table.row(f, "ask plain", **under, threshold="none") for f in ("recall", "f1")}
    assert 0 <= free["recall"].mean <= 1
    with pytest.raises(KeyError):
        table.row("f1", "prob", **under, threshold="none")
    assert table.row("auroc", "ask plain", **under).n == 12


def test_facts_the_model_does_not_know_count_in_the_practical_setting(model: Any) -> None:
    results = [*RESULTS[:11], FactResult("f11", "not_known", answer=FACTS[11].answer)]
    found = checked(model, FACTS, results, queries=("short",), n_random=2)
    row = {s: found.row("auroc", "N", setting=s, query="short", facts="all") for s in SETTINGS}
    assert (row["golden"].n, row["practical"].n) == (11, 12)
    assert not any("knows every fact" in n for n in found.notes)
    skipped = [*RESULTS[:11], FactResult("f11", "skipped", "a reason")]
    found = checked(model, FACTS, skipped, queries=("short",), n_random=2)
    assert found.row("auroc", "prob", setting="golden", query="short", facts="all").n == 11


SETTINGS = ("golden", "practical")


def test_a_statement_of_no_numbers_leaves_its_fact_out_which_is_said() -> None:
    model, bad = planted_model(), 50
    spoilt = dataclasses.replace(FACTS[0], wrong_answers=(text([bad, 49]),))
    options = {"n_random": 20, "queries": ("short",)}
    expected = checked(model, FACTS[1:], RESULTS[1:], **options)
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = torch.nan
    found = checked(model, [spoilt, *FACTS[1:]], RESULTS, **options)
    under = {"setting": "golden", "query": "short", "facts": "all"}
    for scorer in ("D", "N", "Rnd", "prob"):
        row, own = (t.row("auroc", scorer, **under) for t in (found, expected))
        assert row.n == own.n
        assert row.mean == pytest.approx(own.mean)
    assert sum("1 facts are left out of prob" in note for note in found.notes) == 1
    assert not any("are left out of prob" in note for note in expected.notes)


def test_the_same_seed_gives_the_same_table(model: Any) -> None:
    few = {"queries": ("short",), "n_random": 2}
    first, again, other = (checked(model, FACTS, RESULTS, seed=s, **few) for s in (0, 0, 1))
    assert (first.rows, first.comparisons) == (again.rows, again.comparisons)
    assert first.rows != other.rows
    assert first.settings["attribution"]["tolerance"] == 1e-2


def test_the_model_is_left_as_it_was() -> None:
    model = planted_model()
    model.model.layers[1].train()
    before, done = state(model), []
    checked(
        model,
        FACTS[:2],
        RESULTS[:2],
        n_random=1,
        queries=("short", "long"),
        progress=lambda n, of: done.append((n, of)),
    )
    assert state(model) == before
    assert done == [(8, 8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_random": 0}, "n_random must be an integer of at least 1; got 0"),
        ({"n_folds": 1}, "n_folds must be an integer of at least 2; got 1"),
        ({"relation_share": 1.0}, r"relation_share must be None or in \[0, 1\); got 1.0"),
        ({"tolerance": 0.0}, "tolerance must be between 0 and 1"),
        ({"queries": ("middle",)}, "queries must be among"),
        ({"config": Config(attribution=AttributionConfig(baseline="given"))}, "got 'given'"),
        (
            {"config": Config(attribution=AttributionConfig(objective="logit_difference"))},
            "objective must be of the stated answer alone",
        ),
    ],
)
def test_options_that_are_not_allowed_are_refused(
    model: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        checked(model, FACTS[:2], RESULTS[:2], **options)


def test_facts_without_a_wrong_answer_are_refused(model: Any) -> None:
    alone = [dataclasses.replace(FACTS[0], wrong_answers=())]
    with pytest.raises(UserError, match="none of the 1 facts can be stated"):
        checked(model, alone, RESULTS[:1])


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    checked(planted_model(), FACTS[:2], RESULTS[:2], n_random=1, queries=("short",), progress=True)
    assert "4/4 statement" in capsys.readouterr().err
