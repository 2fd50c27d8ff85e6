"""Shares that a ranking's first neurons keep and take away, against brute force."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.degeneracy.edits import Edit, suppress
from dkn_engine.errors import FactError, UserError
from dkn_engine.forward.contexts import AnswerSequence
from tests.models.test_guest import assert_unchanged, state
from tests.support.brute_force_edits import answer_probability
from tests.support.brute_force_objectives import objective as brute_force
from tests.support.tiny import N_LAYERS, WIDTH, sequences, tiny
from tests.support.words import text, words_tokenizer

RANKING = np.array([[2, 5], [0, 39], [1, 0], [2, 1], [0, 3]], dtype=np.int32)
MEANS = np.random.default_rng(3).standard_normal((N_LAYERS, WIDTH))
# Both sides compute the same in float64, in another order; norms of LLaMA round to float32.
ALLOWED = {"gpt2": 1e-10, "gptj": 1e-5, "llama": 1e-5}


WRONG = ((7,), (11, 13, 5))


def asked() -> list[AnswerSequence]:
    """The usual sequences, against two wrong answers each."""
    found = []
    for one in sequences():
        prompt = one.ids[: one.n_prompt]
        wrong = (AnswerSequence(prompt + a[:-1], len(prompt), a) for a in WRONG)
        found.append(dataclasses.replace(one, against=tuple(wrong)))
    return found


def facts() -> list[dkn.Fact]:
    wrong = tuple(map(text, WRONG))
    return [
        dkn.Fact(f"f{b}", text(one.ids[: one.n_prompt]), text(one.targets), wrong_answers=wrong)
        for b, one in enumerate(sequences())
    ]


@pytest.mark.parametrize(
    "objective", ["probability", "log_probability", "logit", "logit_difference"]
)
@pytest.mark.parametrize("means", [None, MEANS])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_curves_equal_brute_force(name: str, means: Any, objective: Any) -> None:
    model = tiny(name)
    before = state(model)
    every = dkn.faithfulness(
        model, words_tokenizer(), facts(), RANKING, means=means, objective=objective, sizes=[1, 3]
    )
    assert_unchanged(before, state(model))

    def m(b: int, edit: Edit) -> float:
        if objective.startswith("logit"):
            return brute_force(name, model, asked()[b], edit, kind=objective)
        p = answer_probability(name, model, sequences()[b], edit, "answer")
        return p if objective == "probability" else math.log(p)

    for b, found in enumerate(every):
        whole, none = m(b, suppress(RANKING[:0])), m(b, suppress(RANKING, means))
        kept = [m(b, suppress(RANKING[k:], means)) for k in (1, 3)]
        removed = [m(b, suppress(RANKING[:k], means)) for k in (1, 3)]
        assert found.fact_id == f"f{b}"
        ends = [whole, none, *kept, *removed]
        ours = [found.whole, found.none, *found.kept, *found.removed]
        assert np.allclose(ours, ends, rtol=ALLOWED[name], atol=ALLOWED[name])
        shares = (np.array(kept) - none) / (whole - none)
        assert np.allclose(found.faithfulness, shares, rtol=1e-3 if name != "gpt2" else 1e-8)


def test_a_ranking_of_all_neurons_keeps_and_takes_all() -> None:
    model, all_of_them = tiny("gpt2"), np.argwhere(np.ones((N_LAYERS, WIDTH)))
    (found,) = dkn.faithfulness(model, words_tokenizer(), facts()[:1], all_of_them)
    assert found.sizes.tolist() == [1, 2, 4, 8, 16, 32, 64, 120]
    assert found.faithfulness[-1] == pytest.approx(1, abs=1e-10)
    assert found.completeness[-1] == pytest.approx(1, abs=1e-10)


def test_a_fact_without_wrong_answers_has_no_difference() -> None:
    bare = dataclasses.replace(facts()[0], wrong_answers=())
    some = (tiny("gpt2"), words_tokenizer(), bare, RANKING)
    with pytest.raises(FactError, match="'f0': objective='logit_difference' needs wrong_answers"):
        dkn.faithfulness(*some, objective="logit_difference")
    assert math.isfinite(dkn.faithfulness(*some, objective="logit")[0].whole)


def test_areas_are_by_trapezoids_over_the_logarithm() -> None:
    curve = dkn.Faithfulness(
        "a", np.array([1, 2, 8]), 1.0, 0.0, np.array([0.0, 0.5, 1.0]), np.array([0.2, 0.2, 0.0])
    )
    # Of the width ln 8 a third lies between 1 and 2, two thirds between 2 and 8.
    assert curve.area_kept == pytest.approx(0.25 / 3 + 0.75 * 2 / 3)
    assert curve.completeness.tolist() == [0.8, 0.8, 1.0]
    assert curve.area_removed == pytest.approx(0.8 / 3 + 0.9 * 2 / 3)
    nothing = dkn.Faithfulness("b", np.array([1]), 0.5, 0.5, np.array([0.5]), np.array([0.5]))
    assert math.isnan(nothing.area_kept)
    assert math.isnan(nothing.faithfulness[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [0, 2]}, "sizes must be ascending integers from 1 to 5"),
        ({"sizes": [3, 2]}, "sizes must be ascending integers from 1 to 5"),
        ({"sizes": []}, "sizes must be ascending integers from 1 to 5"),
        ({"sizes": [6]}, "the neurons of fact 'f0'; got [6]"),
        ({"ranking": {"f1": RANKING}}, "ranking must hold a neuron or more; fact 'f0' has none"),
        ({"ranking": {"other": RANKING}}, "ranking must be neurons [n, 2] (layer, index), or"),
        ({"objective": "loss"}, "objective must be one of probability, log_probability, logit, l"),
        ({"positions": "first"}, "positions must be one of answer, answer_all, all"),
    ],
)
def test_what_cannot_be_meant_is_said(options: dict[str, Any], message: str) -> None:
    arguments = {"ranking": RANKING, **options}
    with pytest.raises(UserError) as caught:
        dkn.faithfulness(tiny("gpt2"), words_tokenizer(), facts(), **arguments)
    assert message in str(caught.value)
