"""Perturbed queries: what changes, what never does, and what the choice depends on."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter

import pytest

import dkn_engine as dkn
from dkn_engine.analysis.config import Kind
from dkn_engine.analysis.experiments.robustness.perturb import ADDED, KINDS, REPLACED, perturb
from dkn_engine.errors import UserError
from dkn_engine.types import Fact

FACT = Fact("g", "The capital city of Germany is", "Berlin", subject="Germany")
SEEDS = range(60)


def outcomes(fact: Fact, kind: Kind, seed: int = 0) -> list[str]:
    """All different ones, in the seed's order."""
    found: list[str] = []
    while (text := perturb(fact, kind, seed=seed, draw=len(found))) is not None:
        found.append(text)
    return found


def drawn_facts() -> list[Fact]:
    """Prompts of two to nine words, some of which are the subject's or the answer's."""
    rng = random.Random(0)
    words = ["the", "city", "of", "Harper", "Lee", "wrote", "Lee's", "(lee),", "is", "is", "—"]
    return [
        Fact(
            f"fact {i}",
            " ".join(rng.choices(words, k=rng.randint(2, 9))),
            rng.choice(["Paris", "is", "the city"]),
            subject=rng.choice([None, "Harper Lee", "city"]),
        )
        for i in range(200)
    ]


FACTS = [*dkn.load_facts("demo"), *drawn_facts()]


def plain(word: str) -> str:
    return word.lower().strip(".,()").removesuffix("'s")


def protected(fact: Fact) -> set[str]:
    last = [] if fact.subject is None else fact.subject.split()[-1:]
    return {plain(w) for w in [*fact.answer.split(), *last]}


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_word_changes(kind: Kind) -> None:
    for fact in FACTS:
        before = fact.prompt.split()
        for text in outcomes(fact, kind):
            after = text.split()
            lost, won = Counter(before) - Counter(after), Counter(after) - Counter(before)
            assert won == Counter({"replace": [REPLACED], "add": [ADDED], "delete": []}[kind])
            assert sum(lost.values()) == (kind != "add")
            rest = [w for w in after if w not in {REPLACED, ADDED}]
            remaining = iter(before)
            assert all(w in remaining for w in rest)  # in their order


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_the_answer_and_the_subjects_last_word_stay(kind: Kind) -> None:
    for fact in FACTS:
        before = Counter(map(plain, fact.prompt.split()))
        for text in outcomes(fact, kind):
            after = Counter(map(plain, text.split()))
            assert all(after[w] == before[w] for w in protected(fact))


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_place_comes_up_once(kind: Kind) -> None:
    for fact in FACTS:
        words, found = fact.prompt.split(), outcomes(fact, kind)
        places = [
            i for i, w in enumerate(words) if kind == "add" or plain(w) not in protected(fact)
        ]
        by_hand = {
            " ".join(
                {
                    "replace": [*words[:i], REPLACED, *words[i + 1 :]],
                    "add": [*words[:i], ADDED, *words[i:]],
                    "delete": [*words[:i], *words[i + 1 :]],
                }[kind]
            )
            for i in places
        }
        assert set(found) == by_hand
        assert len(found) == len(by_hand)
        assert sorted(outcomes(fact, kind, seed=1)) == sorted(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_depends_on_seed_id_and_kind_alone(kind: Kind) -> None:
    other = dataclasses.replace(FACT, id="other")
    mine = [perturb(FACT, kind, seed=s) for s in SEEDS]
    assert mine == [perturb(FACT, kind, seed=s) for s in SEEDS]
    assert mine != [perturb(other, kind, seed=s) for s in SEEDS]
    assert len(set(mine)) == len(outcomes(FACT, kind))  # every place, over 60 seeds
    elsewhere = dataclasses.replace(FACT, relation="r", date="2020", paraphrases=("x y",))
    assert mine == [perturb(elsewhere, kind, seed=s) for s in SEEDS]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("replace", {"The [REPLACED]  Ann's\twork is", "The old  Ann's\twork [REPLACED]"}),
        ("delete", {"The Ann's\twork is", "The old  Ann's\twork"}),
        ("add", {"The [ADDED] old  Ann's\twork is", "The old  Ann's\twork [ADDED] is"}),
    ],
)
def test_spaces_elsewhere_stay(kind: Kind, expected: set[str]) -> None:
    """Those behind a deleted word go with it."""
    found = outcomes(Fact("a", "The old  Ann's\twork is", "art", subject="Ann"), kind)
    assert expected <= set(found)
    assert all(t == t.strip() for t in found)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_without_a_word_to_change_are_refused(kind: Kind) -> None:
    assert perturb(Fact("a", "Berlin", "x"), kind) is None
    assert perturb(Fact("a", "", "x"), kind) is None
    both = Fact("a", "Germany: Berlin", "Berlin", subject="Germany")
    assert (perturb(both, kind) is None) == (kind != "add")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="got 'swap'"):
        perturb(FACT, "swap")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_line_break_that_ends_a_prompt_stays(kind: Kind) -> None:
    fact = Fact("a", "<user> Q? <model>\n", "b")
    found = [perturb(fact, kind, draw=i) for i in range(3)]
    assert len(set(found)) == 3
    assert all(text is not None and re.search(r"\S\n$", text) for text in found)
