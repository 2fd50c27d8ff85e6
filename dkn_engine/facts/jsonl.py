"""The engine's own format: one JSON object a line, keys as the fields of ``Fact``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dkn_engine.config import Blank
from dkn_engine.facts.blanks import BLANK, with_mask
from dkn_engine.facts.ids import made_id
from dkn_engine.facts.json_records import (
    FIELDS,
    BadEntry,
    Read,
    convert_records,
    label,
    table,
    text,
    texts,
)
from dkn_engine.files.visible_text import prompt_without_space
from dkn_engine.types import Fact


def read(path: Path, blank: Blank) -> Read:
    """Facts of ``{"prompt", "answer", ...}`` lines; what has no id gets one of its text."""
    return convert_records(path, lambda value, _: fact_of(table(value), blank))


def fact_of(entry: Mapping[str, Any], blank: Blank) -> Fact:
    """The fact of a line.

    Raises:
        BadEntry: it has none; or with ``blank="skip"``, a prompt with the blank of another
            format, which would be asked as text.
    """
    fact = convert(entry)
    if blank == "keep":
        kept = tuple(map(with_mask, (fact.prompt, *fact.paraphrases)))
        return replace(fact, prompt=kept[0], paraphrases=kept[1:])
    for prompt in (fact.prompt, *fact.paraphrases):
        found = BLANK.search(prompt)
        if found is not None and blank == "skip":
            raise BadEntry(
                f"the blank {found[0]} would be asked as text in {prompt!r}; end the prompt in "
                "front of it, or keep it with facts.blank=literal",
                kind="blank",
            )
    return fact


def convert(entry: Mapping[str, Any]) -> Fact:
    """The fact of a line, whatever its prompt holds.

    Raises:
        BadEntry: it has none.
    """
    unknown = sorted(set(entry) - set(FIELDS), key=str)
    if unknown:
        # A misspelt 'paraphrases' must not be lost without a word.
        raise BadEntry(f"unknown key {unknown[0]!r}; known: {', '.join(FIELDS)}")
    name = label(entry, "id")
    prompt, answer = text(entry, "prompt", prompt_without_space), text(entry, "answer")
    date = label(entry, "date")
    return Fact(
        id=made_id(prompt, answer, date) if name is None else name,
        prompt=prompt,
        answer=answer,
        aliases=texts(entry, "aliases"),
        subject=label(entry, "subject"),
        relation=label(entry, "relation"),
        paraphrases=texts(entry, "paraphrases", prompt_without_space),
        wrong_answers=texts(entry, "wrong_answers"),
        date=date,
    )
