"""TempLAMA: dated questions with a blank ``_X_``, as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dkn_engine.config import Blank
from dkn_engine.facts.json_records import (
    BadEntry,
    Read,
    convert_records,
    cut_blank,
    distinct,
    label,
    required_label,
    table,
    text,
)
from dkn_engine.types import Fact

MARK = "_X_"


def read(path: Path, blank: Blank) -> Read:
    """Facts of ``{"query", "answer": [{"name"}, ...], "id", "date", "relation"}`` lines."""
    return convert_records(path, lambda value, _: _convert(table(value), blank))


def _convert(entry: Any, blank: Blank) -> Fact:
    name = required_label(entry, "id")
    query = text(entry, "query")
    answers = _answers(entry)
    prompt = cut_blank(query, MARK, blank)
    if prompt is None:
        raise BadEntry(f"the blank {MARK} is not at the end of {query!r}", kind="blank")
    return Fact(
        id=name,
        prompt=prompt,
        answer=answers[0],
        aliases=distinct(answers[1:], without=answers[:1]),
        relation=label(entry, "relation"),
        date=label(entry, "date"),
    )


def _answers(entry: Any) -> list[str]:
    answers = entry.get("answer")
    if "answer" not in entry:
        raise BadEntry("missing key 'answer'")
    if not isinstance(answers, list):
        raise BadEntry(f"'answer' must be a list of objects; got {type(answers).__name__}")
    if not answers:
        raise BadEntry("'answer' is empty")
    return [text(table(a, "an answer"), "name") for a in answers]
