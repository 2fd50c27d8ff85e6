"""Statements: balanced, true and false as they say, none twice; relations teach in folds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest

import dkn_engine as dkn
from dkn_engine.analysis.experiments.fact_check.statements import (
    FORMS,
    Statement,
    make_statements,
    packaged_templates,
)
from dkn_engine.errors import UserError
from dkn_engine.facts.dates import dated
from dkn_engine.types import Fact

DEMO = dkn.load_facts("demo")


def team(player: str, club: str, year: str, **more: Any) -> Fact:
    """In TempLAMA's way: no subject, the same prompt every year."""
    return Fact(
        f"{player}-{club}-{year}", f"{player} plays for", club, relation="team", date=year, **more
    )


CAREER = [
    team("Rossi", "Yamaha", "2010"),
    team("Rossi", "Ducati", "2011"),
    team("Rossi", "Yamaha", "2013"),
    team("Stoner", "Honda", "2011"),
    team("Stoner", "Repsol", "2011", aliases=("HRC",)),
]


def made(
    facts: list[Fact], *, seed: int = 0, forms: Any = FORMS, **options: int
) -> tuple[list[Statement], Counter[str]]:
    chosen = [(f, f.answer) for f in facts]
    return make_statements(chosen, facts, forms, lambda *_: True, seed=seed, **options)


@pytest.mark.parametrize("facts", [DEMO, CAREER], ids=["demo", "dated"])
@pytest.mark.parametrize("seed", range(5))
def test_statements_are_balanced_and_none_comes_twice(facts: list[Fact], seed: int) -> None:
    statements, left_out = made(facts, seed=seed)
    texts = [(s.prompt, s.answer) for s in statements]
    assert len(set(texts)) == len(texts)
    assert not left_out
    per_fact = Counter((s.fact_id, s.form, s.is_true) for s in statements)
    assert set(per_fact.values()) == {1}
    assert all(per_fact[i, f, not true] for i, f, true in per_fact)
    # A fact's two answers are the same in every form.
    answers: dict[tuple[str, bool], set[str]] = {}
    for s in statements:
        answers.setdefault((s.fact_id, s.is_true), set()).add(s.answer)
    assert all(len(a) == 1 for a in answers.values())


@pytest.mark.parametrize("seed", range(20))
def test_wrong_answers_of_the_fact_come_first(seed: int) -> None:
    wrong = {f.id: f.wrong_answers for f in DEMO}
    statements, _ = made(DEMO, seed=seed)
    assert all(s.answer in wrong[s.fact_id] for s in statements if not s.is_true)


@pytest.mark.parametrize("seed", range(20))
def test_dated_facts_are_dated_and_false_in_another_years_way(seed: int) -> None:
    statements, _ = made(CAREER, seed=seed, forms=("short",))
    said = {(s.fact_id, s.is_true): s for s in statements}
    assert said["Rossi-Yamaha-2010", True].prompt == "In 2010, Rossi plays for"
    assert said["Rossi-Yamaha-2010", True].sentence == "In 2010, Rossi plays for Yamaha."
    # His own team of another year, not that of another rider.
    assert said["Rossi-Yamaha-2010", False].answer == "Ducati"
    assert said["Rossi-Ducati-2011", False].answer == "Yamaha"
    # Two answers of one question are both true; the other years have none: so other riders'.
    assert said["Stoner-Honda-2011", False].answer in {"Yamaha", "Ducati"}


@pytest.mark.parametrize("seed", range(5))
def test_years_that_the_loader_put_in_front_change_no_statement(seed: int) -> None:
    assert made([dated(f) for f in CAREER], seed=seed, forms=("short",)) == made(
        CAREER, seed=seed, forms=("short",)
    )


def test_the_same_year_in_the_prompt_is_not_said_again() -> None:
    fact = Fact("a", "In 2010, Rossi rode a", "Yamaha", date="2010", wrong_answers=("Honda",))
    assert made([fact], forms=("short",))[0][0].prompt == fact.prompt


@pytest.mark.parametrize("seed", range(30))
def test_what_is_true_of_the_same_is_never_stated_as_false(seed: int) -> None:
    facts = [
        Fact("a", "Lee wrote", "Emma", relation="author", aliases=("EMMA!",)),
        Fact("b", "Lee wrote", "Persuasion", relation="author"),
        Fact("c", "A book by Lee is", "Emma", relation="author", subject="Lee"),
        Fact("d", "Among Lee's books is", "Sanditon", relation="author", subject="Lee"),
        Fact("e", "Kim wrote", "emma!", relation="author"),
        Fact("f", "Kim wrote", "Walden", relation="author", wrong_answers=("WALDEN", "Emma!")),
    ]
    statements, left_out = made(facts, seed=seed, forms=("short",))
    true = {"Lee wrote": {"emma", "emma!", "persuasion"}, "Kim wrote": {"emma!", "walden"}}
    true["A book by Lee is"] = true["Among Lee's books is"] = {"emma", "sanditon"}
    for s in statements:
        assert (s.answer.casefold() in true[s.prompt]) == s.is_true
    assert not left_out


def test_facts_that_cannot_be_stated_are_counted() -> None:
    alone = Fact("a", "The sky is", "blue", relation="colour")
    again = dataclasses.replace(DEMO[0], id="again")
    statements, left_out = made([alone, DEMO[0], again])
    assert {s.fact_id for s in statements} == {DEMO[0].id}
    assert left_out == {
        "no wrong answer can be stated": 1,
        "another fact is stated in the same words": 1,
    }


def test_answers_that_cannot_be_encoded_are_not_stated() -> None:
    fact = DEMO[0]
    bad = {fact.wrong_answers[0], fact.wrong_answers[2]}
    statements, _ = make_statements(
        [(fact, fact.answer)],
        [],
        FORMS,
        lambda prompt, answer: answer not in bad and prompt != fact.paraphrases[0],
        seed=0,
    )
    assert {s.answer for s in statements} == {fact.answer, fact.wrong_answers[1]}
    said = {s.form: s.prompt for s in statements}
    assert said["paraphrase"] == fact.paraphrases[1]


def test_forms_are_the_prompt_a_held_out_paraphrase_and_a_longer_text() -> None:
    statements, _ = made(DEMO, n_paraphrases=2)
    facts = {f.id: f for f in DEMO}
    for s in statements:
        fact = facts[s.fact_id]
        expected = {"short": fact.prompt, "paraphrase": fact.paraphrases[2]}
        if s.form in expected:
            assert s.prompt == expected[s.form]
        else:
            context = s.prompt.removesuffix(fact.prompt)
            assert context.endswith(". ")
            assert len(context.split()) > 6
    assert {s.form for s in statements} == set(FORMS)
    assert len({s.prompt.split(".")[0] for s in statements if s.form == "long"}) == 4
    few = dataclasses.replace(DEMO[0], paraphrases=(DEMO[0].prompt,))
    assert {s.form for s in made([few])[0]} == {"short", "long"}


def test_draws_depend_on_the_fact_and_the_seed_alone() -> None:
    mine = [s for s in made(DEMO)[0] if s.fact_id == DEMO[5].id]
    assert mine == made([DEMO[5]])[0]
    drawn = {s.answer for seed in range(30) for s in made([DEMO[5]], seed=seed)[0]}
    assert drawn == {DEMO[5].answer, *DEMO[5].wrong_answers}


def test_a_further_wrong_answer_changes_no_draw_among_the_other_kinds() -> None:
    def drawn(wrong: tuple[str, ...], seed: int) -> str:
        fact = dataclasses.replace(DEMO[0], wrong_answers=wrong)
        usable = lambda _, answer: answer not in wrong  # noqa: E731
        found, _ = make_statements(
            [(fact, fact.answer)], [fact, *DEMO[1:]], ("short",), usable, seed=seed
        )
        return next(s.answer for s in found if not s.is_true)

    for seed in range(10):
        assert drawn(("x", "y", "z"), seed) == drawn(("x",), seed)


@pytest.mark.parametrize("forms", [(), ("short", "short"), ("medium",)])
def test_unknown_and_repeated_forms_are_refused(forms: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="queries must be among short, paraphrase, long"):
        made(DEMO, forms=forms)


def test_packaged_templates_have_their_places() -> None:
    long, ask = packaged_templates("long"), packaged_templates("ask")
    assert all(t["template"].endswith("{prompt}") for t in long.values())
    assert all(t["template"].count("{statement}") == 1 for t in ask.values())
    assert all(t["yes"] != t["no"] for t in ask.values())
    assert len(long) >= 3
    assert len(ask) >= 3
