"""The engine's own format: one JSON object a line, keys as the fields of ``Fact``."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dkn_engine.facts.records import (
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
from dkn_engine.types import Fact

_FIELDS = tuple(f.name for f in dataclasses.fields(Fact))


def read(path: Path, blank: Blank) -> Read:
    """Facts of ``{"id", "prompt", "answer", ...}`` lines.

    Raises:
        FactError: the file cannot be read or is empty.
    """
    return convert_records(path, lambda value, _: _convert(table(value)))


def _convert(entry: Any) -> Fact:
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        # A misspelt 'paraphrases' must not be lost without a word.
        raise BadEntry(f"unknown key {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    return Fact(
        id=required_label(entry, "id"),
        prompt=text(entry, "prompt"),
        answer=text(entry, "answer"),
        aliases=texts(entry, "aliases"),
        subject=label(entry, "subject"),
        relation=label(entry, "relation"),
        paraphrases=texts(entry, "paraphrases"),
        wrong_answers=texts(entry, "wrong_answers"),
        date=label(entry, "date"),
    )


def write_facts(path: str | Path, facts: Iterable[Fact]) -> None:
    """Write facts as JSON lines that :func:`dkn_engine.load_facts` reads back unchanged.

    The file appears whole or not at all.

    Args:
        path: the file; replaced if it is there.
        facts: in the order in which they are written.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            for fact in facts:
                file.write(json.dumps(_plain(fact), ensure_ascii=False) + "\n")
        # mkstemp makes private files; this one is data like any other.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(fact: Fact) -> dict[str, Any]:
    """The fields that are set, in the order of the class."""
    return {k: v for k, v in dataclasses.asdict(fact).items() if v not in (None, ())}
