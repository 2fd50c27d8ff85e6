"""Space at the ends of a fact's texts, which must not decide whether a model knows it."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dkn_engine.facts import load_facts
from dkn_engine.facts.given import fact_list
from dkn_engine.files.visible_text import prompt_without_space, without_space
from dkn_engine.types import Fact

SPACES = [" ", "  ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2060", "\u00ad", " \u200b "]
# What nobody sees, by kind: marks of direction, of other layout, controls, letters and symbols
# without a picture, and what changes the character in front of it, which no Latin letter takes.
DIRECTIONS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c"
FORMATS = "\u2061\u2062\u2063\u2064\u206a\u206f\ufff9\ufffb\U0001d173\U000e0001"
CONTROLS = "\0\x01\x08\x0e\x1b\x1f\x7f\x80\x9f"
EMPTY_LETTERS = "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5"
ATTACHED = "\u200c\u200d\ufe00\ufe0e\ufe0f\u180b\u180d\u180e\u180f\U000e0067\U000e0100"
INVISIBLE = [*DIRECTIONS, *FORMATS, *CONTROLS, *EMPTY_LETTERS, *ATTACHED]
MIXED = ["\u202c\ufe0f", "\u200d\ufe0f", "\ufe0f\u202c", " \u200d", "\u200d \u2069", "\n\u200c "]
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


def as_dict(fields: dict[str, object], _folder: Path) -> Fact:
    (fact,) = fact_list(fields)
    return fact


def as_file(fields: dict[str, object], folder: Path) -> Fact:
    (folder / "facts.jsonl").write_text(json.dumps(fields), encoding="utf-8")
    (fact,) = load_facts(folder / "facts.jsonl")
    return fact


WAYS = pytest.mark.parametrize("way", [as_fact, as_dict, as_file])
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
@pytest.mark.parametrize("space", SPACES + INVISIBLE, ids=ascii)
def test_space_at_the_ends_is_taken_away(way: Way, space: str, tmp_path: Path) -> None:
    assert way(around(space), tmp_path) == CLEAN


@pytest.mark.parametrize("space", MIXED, ids=ascii)
def test_mixed_space_at_the_ends_is_taken_away(space: str) -> None:
    assert without_space(f"{space}Paris{space}") == "Paris"
    assert without_space(f"{space}Bogot\u00e1{space}") == "Bogot\u00e1"


def test_every_character_of_the_invisible_categories_goes() -> None:
    every = [chr(c) for c in range(sys.maxunicode + 1)]
    gone = {c for c in every if without_space(f"{c}a{c}") == "a"}
    unseen = {c for c in every if unicodedata.category(c) in {"Cf", "Cc", "Zs", "Zl", "Zp"}}
    # Signs drawn under or around digits are of the category Cf, but they can be seen.
    visible = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2")
    visible |= set("\U000110bd\U000110cd")
    assert unseen - gone == visible
    assert {unicodedata.category(c) for c in gone - unseen} == {"Mn", "Lo", "So"}
    assert all(c in EMPTY_LETTERS or "VARIATION SEL" in unicodedata.name(c) for c in gone - unseen)


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
    text = f"a \u00a0b\u200bc\n{''.join(INVISIBLE)}d"
    assert without_space(text) == prompt_without_space(text) == text


@pytest.mark.parametrize("text", ["", " ", "\u200b \ufeff", *INVISIBLE, "\u200d" * 9], ids=ascii)
def test_only_space_is_nothing(text: str) -> None:
    assert without_space(text) == prompt_without_space(text) == ""


WORDS = [
    "\u0d28\u0d4d\u200d",  # Malayalam chillu n
    "\u0645\u06cc\u200c",  # Persian prefix
    "\u1820\u180b",  # Mongolian letter and its form
    "\u845b\U000e0100",  # a kanji and its form
    "\u2764\ufe0f",  # a red heart
    "\u00a9\ufe0f",  # copyright as an emoji
    "#\ufe0f\u20e3",  # a keycap
    "\U0001f468\u200d\U0001f469",  # a couple
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # England's flag
]


@pytest.mark.parametrize("word", WORDS, ids=ascii)
def test_joiners_and_selectors_belong_to_their_words(word: str) -> None:
    fact = Fact("a", word, f"\u202a{word}\u202c")
    assert (fact.prompt, fact.answer) == (word, word)


MARKS = st.sampled_from([*INVISIBLE, *MIXED, *SPACES, *BREAKS, *WORDS, "a", "\u00e9", "\u06dd"])


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(text=st.lists(MARKS, max_size=8).map("".join) | st.text(max_size=8))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    for clean in (without_space, prompt_without_space):
        once = clean(text)
        assert clean(once) == once
        assert once in text
    assert without_space(prompt_without_space(text)) == without_space(text)


@pytest.mark.parametrize("name", ["aliases", "paraphrases", "wrong_answers"])
def test_a_list_becomes_a_tuple(name: str) -> None:
    fact = Fact("a", "b", "c", **{name: ["d"]})  # type: ignore[arg-type]
    assert getattr(fact, name) == ("d",)
    assert fact == Fact("a", "b", "c", **{name: ("d",)})  # type: ignore[arg-type]
    assert len({fact, Fact("a", "b", "c", **{name: ("d",)})}) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["aliases", "paraphrases", "wrong_answers"])
def test_none_is_a_list_without_texts(name: str) -> None:
    assert Fact("a", "b", "c", **{name: None}) == Fact("a", "b", "c")  # type: ignore[arg-type]
