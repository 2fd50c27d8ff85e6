"""The engine's own format: one JSON object a line, keys as the fields of ``Fact``."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import FactError
from dkn_engine.facts.json_records import (
    BadEntry,
    Blank,
    Read,
    convert_records,
    label,
    required_label,
    table,
    text,
    texts,
)
from dkn_engine.files.visible_text import prompt_without_space
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from dkn_engine.facts.given import Facts

# As other formats, tokenizers and people spell it. Two underscores in a word are part of a name.
_BLANK = re.compile(r"_{3,}|(?<![\w.])__(?![\w(])|(?i:\[MASK\]|<MASK>|\[BLANK\])|\{\}|\[Y\]|_X_")
_FIELDS = tuple(f.name for f in dataclasses.fields(Fact))


def read(path: Path, blank: Blank) -> Read:
    """Facts of ``{"id", "prompt", "answer", ...}`` lines.

    Raises:
        FactError: the file cannot be read or is empty.
    """
    return convert_records(path, lambda value, _: fact_of(table(value), blank))


def fact_of(entry: Mapping[str, Any], blank: Blank) -> Fact:
    """The fact of a line.

    Raises:
        BadEntry: it has none; or with ``blank="skip"``, a prompt with the blank of another
            format, which would be asked as text.
    """
    fact = _convert(entry)
    for prompt in (fact.prompt, *fact.paraphrases):
        found = _BLANK.search(prompt)
        if found is not None and blank == "skip":
            raise BadEntry(
                f"the blank {found[0]} would be asked as text in {prompt!r}; end the prompt in "
                "front of it, or keep it with facts.blank=literal",
                kind="blank",
            )
    return fact


def _convert(entry: Mapping[str, Any]) -> Fact:
    unknown = sorted(set(entry) - set(_FIELDS), key=str)
    if unknown:
        # A misspelt 'paraphrases' must not be lost without a word.
        raise BadEntry(f"unknown key {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    return Fact(
        id=required_label(entry, "id"),
        prompt=text(entry, "prompt", prompt_without_space),
        answer=text(entry, "answer"),
        aliases=texts(entry, "aliases"),
        subject=label(entry, "subject"),
        relation=label(entry, "relation"),
        paraphrases=texts(entry, "paraphrases", prompt_without_space),
        wrong_answers=texts(entry, "wrong_answers"),
        date=label(entry, "date"),
    )


def write_facts(path: str | Path, facts: Facts) -> None:
    """Write facts as JSON lines that :func:`dkn_engine.load_facts` reads back unchanged.

    The file appears whole or not at all. A new one gets the permissions that the user's umask
    leaves, as any file; one that is replaced keeps its own. Blanks such as ``[MASK]`` in prompts
    come back with ``blank="literal"`` only.

    Args:
        path: the file; replaced if it is there.
        facts: in the order in which they are written; a path, one fact, facts or mappings with
            their fields, as for :func:`dkn_engine.find_dkns`.

    Raises:
        TypeError: ``facts`` are none of these.
        FactError: a fact could not be read back (an empty text, broken Unicode, an id twice), there
            is none, which could not be read back either, or a path or mapping gives none.
        OSError: the file cannot be written.
    """
    from dkn_engine.facts.given import facts_from  # It reads files by this module.

    read = facts_from(facts)
    path = Path(path).expanduser()
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(read))
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _lines(facts: Iterable[Fact]) -> Iterator[str]:
    seen: set[str] = set()
    for fact in facts:
        entry = _plain(fact)
        try:
            _convert(entry)  # As the file will be read.
        except BadEntry as error:
            raise FactError(f"fact {fact.id!r} cannot be written: {error.reason}") from None
        if fact.id in seen:
            raise FactError(f"fact ids must be unique; got {fact.id!r} twice")
        seen.add(fact.id)
        yield json.dumps(entry, ensure_ascii=False) + "\n"
    if not seen:
        raise FactError("facts must hold at least one fact, or the file is empty; got none")


def _plain(fact: Fact) -> dict[str, Any]:
    """The fields that are set, in the order of the class."""
    return {k: v for k, v in dataclasses.asdict(fact).items() if v not in (None, ())}
