"""Complexity of texts and of models, on planted facts whose degeneracy is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import dkn_engine as dkn
from dkn_engine.analysis.experiments.complexity import long_forms
from dkn_engine.analysis.experiments.complexity import text_complexity as text_complexity_module
from dkn_engine.analysis.experiments.complexity.experiment import complexity, degeneracy_samples
from dkn_engine.analysis.experiments.complexity.long_forms import known_forms, long_form, templates
from dkn_engine.analysis.experiments.complexity.model_sizes import (
    ModelSize,
    complexity_of_models,
    model_size,
)
from dkn_engine.analysis.experiments.complexity.text_complexity import text_complexity
from dkn_engine.config import AttributionConfig, Config, FactsConfig
from dkn_engine.errors import UserError
from dkn_engine.statistics.table import TREND, Table
from dkn_engine.types import Component, Drops, Fact, FactResult
from tests.support.guests import state
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

COPIES = 12  # Under other ids, so that there are pairs enough for a test.
# With a masked word of four the planted fact is still known, so masked prompts are no baseline.
ZERO = Config(attribution=AttributionConfig(baseline="zero"))


def planted_facts() -> list[Fact]:
    """Each with a longer paraphrase that is the same to the model.

    It reads with equal attention to all words, so twice the words carry the same.
    """
    facts = []
    for planted in (EITHER, BOTH):
        words = planted.fact.prompt.split()
        longer = " ".join(w for w in words for _ in range(2))
        facts += [
            dataclasses.replace(planted.fact, id=f"{planted.fact.id}-{i}", paraphrases=(longer,))
            for i in range(COPIES)
        ]
    return facts


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def found(model: Any) -> dkn.Results:
    return dkn.find_dkns(model, words_tokenizer(), planted_facts(), ZERO)


@pytest.fixture(scope="module")
def either_alone(model: Any, found: dkn.Results) -> Table:
    facts = planted_facts()[:COPIES]
    return complexity(
        model, words_tokenizer(), facts, found[:COPIES], forms=["paraphrase"], config=ZERO
    )


# Texts


def test_planted_degeneracy_is_what_the_table_says(either_alone: Table) -> None:
    for form in ("short", "paraphrase"):
        share = either_alone.row("degenerate", form)
        assert (share.mean, share.n, share.control) == (1.0, COPIES, False)
        assert either_alone.row("known", form).mean == 1.0
        assert either_alone.row("components", form).mean == 3
        assert either_alone.row("dkn_components", form).mean == 3
        assert either_alone.row("component_size", form).mean == 4
        assert either_alone.row("knowledge_neurons", form).mean == 12
        assert either_alone.row("full_drop", form, sets="candidates").mean > 0.99
        assert either_alone.row("partial_drop", form, sets="candidates").mean < 0.05
        assert either_alone.row("redundancy", form, sets="candidates").mean > 10
        assert either_alone.row("full_drop", "D", form=form).mean > 0.99
        assert abs(either_alone.row("full_drop", "Rnd", form=form).mean) < 0.01
        assert either_alone.row("full_drop", "Rnd", form=form).control
        assert either_alone.comparison("full_drop", "D", "Rnd", form=form).verdict == "higher"


def test_facts_that_need_all_components_are_not_degenerate(model: Any, found: dkn.Results) -> None:
    facts = planted_facts()[COPIES:]
    table = complexity(
        model, words_tokenizer(), facts, found[COPIES:], forms=["paraphrase"], config=ZERO
    )
    for form in ("short", "paraphrase"):
        assert table.row("degenerate", form).mean == 0.0
        assert table.row("components", form).mean == 2
        assert table.row("dkn_components", form).n == 0
        assert table.row("partial_drop", form, sets="candidates").mean > 0.98
        assert table.row("redundancy", form, sets="candidates").mean < 0.6
    with pytest.raises(KeyError):
        table.row("full_drop", "D", form="short")


def test_a_form_that_is_the_same_to_the_model_differs_in_length_alone(either_alone: Table) -> None:
    assert either_alone.row("prompt_tokens", "short").mean == 2
    assert either_alone.comparison("prompt_tokens", "paraphrase", "short").mean == 2
    assert either_alone.comparison("prompt_tokens", "paraphrase", "short").verdict == "higher"
    for figure in ("degenerate", "components", "persistence", "known"):
        c = either_alone.comparison(figure, "paraphrase", "short")
        assert c.mean == pytest.approx(0, abs=1e-6)
        assert c.n == COPIES
        assert c.verdict == "no difference found"


def test_facts_that_a_form_loses_are_counted(model: Any, found: dkn.Results) -> None:
    """Words in front leave the subject too little attention; one fact has no paraphrase."""
    facts = planted_facts()
    facts[0] = dataclasses.replace(facts[0], paraphrases=())
    table = complexity(
        model, words_tokenizer(), facts, found, forms=["letter", "paraphrase"], config=ZERO
    )
    counts = table.settings["forms"]
    n = len(facts)
    assert counts["short"] == {"known": n, "not_known": 0, "unusable": 0, "no_long_form": 0}
    assert counts["letter"] == {"known": 0, "not_known": n, "unusable": 0, "no_long_form": 0}
    assert counts["paraphrase"]["no_long_form"] == 1
    assert counts["paraphrase"]["known"] == n - 1
    assert table.row("known", "letter").mean == 0.0
    assert table.comparison("known", "letter", "short").verdict == "lower"
    assert table.row("known", "paraphrase").n == n - 1
    assert any(f"letter: the model knows 0 facts, {n} it does not" in note for note in table.notes)


def test_unusable_facts_are_named_and_left_out(model: Any) -> None:
    facts = [EITHER.fact, Fact("empty", "w5 w10", "", paraphrases=("w5 w5 w10",))]
    results = dkn.find_dkns(model, words_tokenizer(), facts)
    assert results[1].status == "skipped"
    table = complexity(model, words_tokenizer(), facts, results, forms=["paraphrase"])
    assert any(note.startswith("1 facts could not be used") for note in table.notes)
    assert table.row("known", "short").n == 1


def test_the_model_and_the_process_stay_as_they_were(model: Any, found: dkn.Results) -> None:
    before = state(model)
    complexity(model, words_tokenizer(), planted_facts()[:2], found[:2], forms=["paraphrase"])
    assert state(model) == before


def test_progress_is_shown(
    model: Any, found: dkn.Results, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = planted_facts()[:2]
    complexity(model, words_tokenizer(), facts, found[:2], forms=["paraphrase"], progress=True)
    assert "2/2 fact" in capsys.readouterr().err


def test_run_directories_continue(model: Any, found: dkn.Results, tmp_path: Any) -> None:
    some = [0, COPIES]  # one of each planting
    facts, tokenizer = [planted_facts()[i] for i in some], words_tokenizer()
    told: list[tuple[int, int]] = []

    def run(**more: Any) -> Table:
        return complexity(
            model,
            tokenizer,
            facts,
            [found[i] for i in some],
            forms=["letter", "paraphrase"],
            out=tmp_path,
            config=ZERO,
            **more,
        )

    first = run(progress=lambda *x: told.append(x))
    assert told[-1] == (4, 4)
    assert told == sorted(told)
    assert {p.name for p in tmp_path.iterdir()} == {"letter", "paraphrase"}
    assert [r.status for r in dkn.read_results(tmp_path / "paraphrase")] == ["ok"] * 2
    assert repr(run()) == repr(first)


def test_without_the_other_controls_every_figure_is_the_same(model: Any, tmp_path: Any) -> None:
    """Long forms are found without the controls that are in no row of the table."""
    facts, tokenizer = planted_facts()[:2] + planted_facts()[-2:], words_tokenizer()
    short = dkn.find_dkns(model, tokenizer, facts, ZERO)
    complexity(model, tokenizer, facts, short, forms=["paraphrase"], config=ZERO, out=tmp_path)
    longer = [dataclasses.replace(f, prompt=f.paraphrases[0], paraphrases=()) for f in facts]
    whole = dkn.find_dkns(model, tokenizer, longer, ZERO)
    assert all(len(r.controls) > 1 and r.null is not None for r in whole)
    ours, expected = (
        {(s.unit, s.group, s.figure, s.conditions): s.value for s in samples}
        for samples in (
            degeneracy_samples("paraphrase", "form", found)
            for found in (dkn.read_results(tmp_path / "paraphrase"), whole)
        )
    )
    assert ours == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert any(group == "Rnd" for _, group, _, _ in ours)


@pytest.mark.parametrize(
    ("forms", "message"),
    [
        (["limerick"], "forms must be among templated, paraphrase, notebook, .*; got 'limerick'"),
        ([], r"forms must name at least one form, each once; got \[\]"),
        (["letter", "letter"], "each once"),
    ],
    ids=["unknown", "none", "twice"],
)
def test_wrong_forms_are_named(
    model: Any, found: dkn.Results, forms: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        complexity(model, words_tokenizer(), planted_facts(), found, forms=forms)


def test_results_of_other_facts_are_refused(model: Any, found: dkn.Results) -> None:
    with pytest.raises(UserError, match="results must be those of the facts"):
        complexity(model, words_tokenizer(), planted_facts()[1:], found)


# Long forms and how complex a text is


def n_words(text: str) -> int:
    return len(text.split())


def test_every_template_ends_with_the_prompt_and_is_neutral() -> None:
    facts = dkn.load_facts("demo") + dkn.load_facts("demo-unselected")
    names = {n for f in facts for n in (f.answer, *f.wrong_answers, f.subject) if n and len(n) > 2}
    assert len(templates()) >= 5
    for template in templates().values():
        assert template.endswith(". {prompt}")
        assert template.count("{prompt}") == 1
        assert 15 < n_words(template) < 30
        front = set(template.replace(".", "").replace(",", "").lower().split())
        assert not front & {n.lower() for n in names}


def test_templated_form_wraps_prompt_and_paraphrases_alike() -> None:
    fact = Fact("x", "Of {prompt} the king is", "y", paraphrases=("Its king is",), subject="z")
    long = long_form(fact, "letter", n_words, 0)
    front = templates()["letter"].removesuffix("{prompt}")
    assert long == dataclasses.replace(
        fact, prompt=front + fact.prompt, paraphrases=(front + "Its king is",)
    )


def test_template_is_drawn_by_seed_and_id_alone() -> None:
    drawn = {i: long_form(Fact(f"f{i}", "p", "a"), "templated", n_words, 0) for i in range(40)}
    prompts = {f.prompt for f in drawn.values() if f is not None}
    assert prompts == {t.replace("{prompt}", "p") for t in templates().values()}
    other = [long_form(Fact(f"f{i}", "p", "a"), "templated", n_words, 1) for i in range(40)]
    assert other != list(drawn.values())
    assert long_form(Fact("f7", "p", "a"), "templated", n_words, 0) == drawn[7]


def test_paraphrase_form_takes_the_longest_and_keeps_the_rest() -> None:
    fact = Fact("x", "a b", "y", paraphrases=("a b c", "a b c d", "a"))
    long = long_form(fact, "paraphrase", n_words, 0)
    assert long is not None
    assert (long.id, long.prompt) == ("x", "a b c d")
    assert long.paraphrases == ("a b", "a b c", "a")
    assert long_form(Fact("x", "a b", "y", paraphrases=("c d",)), "paraphrase", n_words, 0) is None
    assert long_form(Fact("x", "a b", "y"), "paraphrase", n_words, 0) is None


def test_all_names_of_forms_work() -> None:
    fact = Fact("x", "a b", "y", paraphrases=("a b c",))
    assert all(long_form(fact, form, n_words, 0) is not None for form in known_forms())
    assert long_forms.TEMPLATED not in templates()


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("most", [512, 5])
def test_surprisal_is_the_mean_of_minus_log2_p(
    bos: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts of several lengths in padded batches, by a pass for each of their tokens."""
    monkeypatch.setattr(text_complexity_module, "_POSITIONS", most)
    model, tokenizer = tiny("gpt2"), words_tokenizer(bos=bos)
    prompts = ["w5 w9 w33 w4", "w8", "", "w7 w7", "w5 w9 w33 w11", "w20 w21 w22 w23 w24 w25"]
    facts = [Fact(f"x{i}", prompt, "w7") for i, prompt in enumerate(prompts)]
    found = text_complexity(model, tokenizer, facts, FactsConfig())
    assert [f is None for f in found] == [p == "" and not bos for p in prompts]
    for prompt, one in zip(prompts, found, strict=True):
        if one is None:
            continue
        ids = [1] * bos + [int(word[1:]) for word in prompt.split()]
        expected = []
        for i in range(1, len(ids)):
            with torch.no_grad():
                p = model(torch.tensor([ids[:i]])).logits[0, -1].softmax(-1)[ids[i]]
            expected.append(-math.log2(float(p)))
        assert one[0] == len(ids)
        # NaN without a token that has one before it; float32 logits of about 1 under float64 ones.
        mean = np.mean(expected) if expected else math.nan
        assert one[1] == pytest.approx(mean, rel=1e-6, nan_ok=True)


# Samples


def test_samples_of_one_result() -> None:
    sizes, neurons = (2, 4), np.zeros((6, 2), dtype=np.int32)
    components = tuple(
        Component(neurons[:n], 0.5, 0.5 + p, p) for n, p in zip(sizes, (3.0, 1.0), strict=True)
    )
    result = FactResult(
        "x",
        "ok",
        probability=0.6,
        neurons=neurons,
        components=components,
        dkn=(0, 1),
        partial_drop=0.1,
        full_drop=0.9,
        candidates=Drops(0.2, 0.8, 3.0),
        controls={"random": Drops(0.01, 0.02)},
    )
    unknown = FactResult("y", "not_known")
    broken = FactResult("z", "error")
    samples = list(degeneracy_samples("g", "model", [result, unknown, broken]))
    found = {(s.unit, s.group, s.figure, s.conditions): s.value for s in samples}
    assert len(found) == len(samples)
    own = {k[2]: v for k, v in found.items() if k[0] == "x" and not k[3]}
    assert own == {
        "known": 1.0,
        "probability": 0.6,
        "knowledge_neurons": 6,
        "components": 2,
        "component_size": 3.0,
        "persistence": 2.0,
        # 3 / 3.5 and 1 / 1.5
        "relative_persistence": pytest.approx((6 / 7 + 2 / 3) / 2),
        "degenerate": 1.0,
        "dkn_components": 2,
    }
    sets, where = (("sets", "candidates"),), (("model", "g"),)
    assert found["x", "g", "redundancy", sets] == 3.0
    assert (found["x", "g", "partial_drop", sets], found["x", "g", "full_drop", sets]) == (0.2, 0.8)
    assert found["x", "D", "full_drop", where] == 0.9
    assert found["x", "Rnd", "full_drop", where] == 0.02
    assert {k: v for k, v in found.items() if k[0] == "y"} == {("y", "g", "known", ()): 0.0}
    assert not any(k[0] == "z" for k in found)


def test_a_single_candidate_has_no_redundancy() -> None:
    component = Component(np.zeros((2, 2), dtype=np.int32), 0.5, 1.0, 0.5)
    one = FactResult("x", "ok", components=(component,), candidates=Drops(math.nan, 0.3, 1.0))
    values = {s.figure: s.value for s in degeneracy_samples("g", "form", [one]) if s.conditions}
    assert all(math.isnan(v) for v in values.values())
    assert set(values) == {"partial_drop", "full_drop", "redundancy"}


# Models


def relabelled(results: dkn.Results) -> list[FactResult]:
    return [dataclasses.replace(r, fact_id=f"f{i}") for i, r in enumerate(results)]


def test_a_degenerate_model_is_told_from_one_that_is_not(found: dkn.Results) -> None:
    """As if one model held the facts redundantly and a larger one did not."""
    facts = [Fact(f"f{i}", "p", "a") for i in range(COPIES)]
    either, both = relabelled(found[:COPIES]), relabelled(found[COPIES:])
    both[0] = FactResult("f0", "not_known")
    sizes = {"both": ModelSize(2000, 4, 32, 256), "either": ModelSize(1000, 4, 32, 256)}
    table = complexity_of_models(facts, {"both": both, "either": either}, sizes)
    assert table.row("degenerate", "either").mean == 1.0
    assert table.row("degenerate", "both").mean == 0.0
    assert table.row("parameters", "both").mean == 2000
    assert (table.row("known", "both").mean, table.row("degenerate", "both").n) == (
        1 - 1 / COPIES,
        COPIES - 1,
    )
    c = table.comparison("degenerate", "both", "either")
    assert (c.mean, c.n, c.verdict) == (-1.0, COPIES - 1, "lower")
    assert table.comparison("partial_drop", "both", "either", sets="candidates").mean > 0.9
    assert table.comparison("redundancy", "both", "either", sets="candidates").mean < -5
    trend = table.row("degenerate", TREND)
    assert (trend.mean, trend.ci_low, trend.n) == pytest.approx((-1, -1, COPIES - 1))
    high = stats.binomtest(0, COPIES - 1).proportion_ci(0.95, method="wilson").high
    assert trend.ci_high == pytest.approx(2 * high - 1)
    assert table.row("components", TREND).mean == pytest.approx(-1.0)
    assert "relative_persistence" in {r.figure for r in table.rows}
    assert "persistence" not in {r.figure for r in table.rows}  # its unit is the model's own
    assert table.settings["known"] == {"either": COPIES, "both": COPIES - 1}


def test_trend_is_over_facts_known_to_all() -> None:
    rng = np.random.default_rng(0)
    names = ["c", "a", "b"]
    sizes = {"c": ModelSize(30, 1, 1, 1), "a": ModelSize(10, 1, 1, 1), "b": ModelSize(20, 1, 1, 1)}
    facts = [Fact(f"f{i}", "p", "a") for i in range(12)]
    p = rng.random((12, 3))
    results = {
        name: [FactResult(f.id, "ok", probability=p[i, k]) for i, f in enumerate(facts)]
        for k, name in enumerate(names)
    }
    results["b"][4] = FactResult("f4", "not_known")
    table = complexity_of_models(facts, results, sizes)
    kept = np.delete(p, 4, axis=0)
    expected = stats.spearmanr(np.tile([30, 10, 20], 11), kept.ravel()).statistic
    row = table.row("probability", TREND)
    assert row.mean == pytest.approx(expected, abs=1e-12)
    without = [
        stats.spearmanr(np.tile([30, 10, 20], 10), np.delete(kept, i, axis=0).ravel()).statistic
        for i in range(11)
    ]
    # Wilson's interval of (1 + rho) / 2 solves (end - rho)^2 = z^2 (1 - end^2) / size.
    size = (1 - row.mean**2) / (10 * np.var(without))
    for end in (row.ci_low, row.ci_high):
        assert (end - row.mean) ** 2 == pytest.approx(1.959964**2 * (1 - end**2) / size, rel=1e-5)
    assert row.n == 11
    assert [c.against for c in table.comparisons if c.figure == "probability"] == ["a", "a"]


def test_equal_sizes_have_no_trend_and_keep_their_order(found: dkn.Results) -> None:
    facts = [Fact(f"f{i}", "p", "a") for i in range(COPIES)]
    of = {"first": relabelled(found[:COPIES]), "second": relabelled(found[:COPIES])}
    size = ModelSize(1000, 4, 32, 256)
    table = complexity_of_models(facts, of, {"first": size, "second": size})
    assert table.comparison("degenerate", "second", "first").verdict == "no difference found"
    assert not any(r.group == TREND for r in table.rows)


def test_size_counts_tied_parameters_once() -> None:
    model = tiny("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    v, d, f, n, positions = 61, 24, 40, 3, 64
    layer = 4 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d)
    assert model_size(model) == ModelSize(v * d + positions * d + n * layer + 2 * d, n, d, f)


def test_models_must_be_the_same_and_two(found: dkn.Results) -> None:
    facts, size = planted_facts(), ModelSize(1, 1, 1, 1)
    with pytest.raises(UserError, match="two at least; got"):
        complexity_of_models(facts, {"a": found}, {"a": size})
    with pytest.raises(UserError, match="of the same models"):
        complexity_of_models(facts, {"a": found, "b": found}, {"a": size, "c": size})
    with pytest.raises(UserError, match="results must be those of the facts"):
        complexity_of_models(facts, {"a": found, "b": found[1:]}, {"a": size, "b": size})


def test_configuration_and_seed_are_noted(either_alone: Table) -> None:
    assert (either_alone.settings["config"], either_alone.seed) == (ZERO.hash, 0)
