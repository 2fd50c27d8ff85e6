"""Space at the ends of a fact's texts, which must not decide whether a model knows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dkn_engine.facts import load_facts
from dkn_engine.spaces import prompt_without_space, without_space
from dkn_engine.types import Fact

SPACES = [" ", "  ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2060", "\u00ad", " \u200b "]
BREAKS = ["\n", "\t", "\r\n", "\n\n"]
CLEAN = Fact(
    "a",
    "The capital of France is",
    "Paris",
    aliases=("Lutetia", "City of Light"),
    paraphrases=("France's capital is",),
    wrong_answers=("Lyon",),
    subject="France",
    relation="capital",
    date="2012",
)


def as_fact(fields: dict[str, object], _folder: Path) -> Fact:
    return Fact(**fields)  # type: ignore[arg-type]


def as_file(fields: dict[str, object], folder: Path) -> Fact:
    (folder / "facts.jsonl").write_text(json.dumps(fields), encoding="utf-8")
    (fact,) = load_facts(folder / "facts.jsonl")
    return fact


WAYS = pytest.mark.parametrize("way", [as_fact, as_file])
Way = Callable[[dict[str, object], Path], Fact]


def around(space: str, before: bool = True) -> dict[str, object]:
    """The fields of the clean fact with space at the ends of each text."""
    front = space if before else ""
    return {
        name: [f"{front}{v}{space}" for v in value]
        if isinstance(value := getattr(CLEAN, name), tuple)
        else f"{front}{value}{space}"
        for name in CLEAN.__dataclass_fields__
    }


@WAYS
@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_space_at_the_ends_is_taken_away(way: Way, space: str, tmp_path: Path) -> None:
    assert way(around(space), tmp_path) == CLEAN


@WAYS
@pytest.mark.parametrize("space", BREAKS, ids=ascii)
def test_line_breaks_stay_behind_prompts_alone(way: Way, space: str, tmp_path: Path) -> None:
    found = way(around(space, before=False), tmp_path)
    assert found.prompt == CLEAN.prompt + space
    assert found.paraphrases == tuple(p + space for p in CLEAN.paraphrases)
    for name in ("id", "answer", "aliases", "wrong_answers", "subject", "relation", "date"):
        assert getattr(found, name) == getattr(CLEAN, name)


def test_space_behind_a_line_break_goes_the_break_stays() -> None:
    assert prompt_without_space(" <user>\n Q? <model>\n\u200b ") == "<user>\n Q? <model>\n"


def test_space_inside_a_text_stays() -> None:
    text = "a \u00a0b\u200bc\nd"
    assert without_space(text) == prompt_without_space(text) == text


@pytest.mark.parametrize("text", ["", " ", "\u200b \ufeff"], ids=ascii)
def test_only_space_is_nothing(text: str) -> None:
    assert without_space(text) == prompt_without_space(text) == ""


@pytest.mark.parametrize("word", ["\u0d28\u0d4d\u200d", "\U0001f468\u200d\U0001f469"], ids=ascii)
def test_joiners_belong_to_their_words(word: str) -> None:
    assert Fact("a", word, word).answer == word


@pytest.mark.parametrize("name", ["aliases", "paraphrases", "wrong_answers"])
def test_a_list_becomes_a_tuple(name: str) -> None:
    fact = Fact("a", "b", "c", **{name: ["d"]})  # type: ignore[arg-type]
    assert getattr(fact, name) == ("d",)
    assert fact == Fact("a", "b", "c", **{name: ("d",)})  # type: ignore[arg-type]
    assert len({fact, Fact("a", "b", "c", **{name: ("d",)})}) == 1  # type: ignore[arg-type]
