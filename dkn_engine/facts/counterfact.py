"""CounterFact: rewrite requests with true and false targets, as a JSON list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dkn_engine.config import Blank
from dkn_engine.facts.json_records import (
    BadEntry,
    Read,
    convert_records,
    distinct,
    label,
    required_label,
    table,
    text,
    texts,
)
from dkn_engine.types import Fact

_SUBJECT = "{}"


def read(path: Path, blank: Blank) -> Read:
    """Facts of ``{"case_id", "requested_rewrite", "paraphrase_prompts"}`` entries.

    The true target is the answer, the new one a wrong answer. Paraphrases keep the unrelated
    sentences in front that the dataset gave them.
    """
    return convert_records(path, lambda value, _: _convert(table(value)))


def _convert(entry: Any) -> Fact:
    name = required_label(entry, "case_id")
    if "requested_rewrite" not in entry:
        raise BadEntry("missing key 'requested_rewrite'")
    rewrite = table(entry["requested_rewrite"], "'requested_rewrite'")
    template, subject = text(rewrite, "prompt"), text(rewrite, "subject")
    if template.count(_SUBJECT) != 1:
        raise BadEntry(f"'prompt' must hold one {_SUBJECT} for the subject; got {template!r}")
    prompt = template.replace(_SUBJECT, subject)
    answer = _target(rewrite, "target_true")
    return Fact(
        id=name,
        prompt=prompt,
        answer=answer,
        subject=subject,
        relation=label(rewrite, "relation_id"),
        paraphrases=distinct(texts(entry, "paraphrase_prompts"), without=(prompt,)),
        wrong_answers=(_target(rewrite, "target_new"),) if "target_new" in rewrite else (),
    )


def _target(rewrite: Any, key: str) -> str:
    if key not in rewrite:
        raise BadEntry(f"missing key {key!r}")
    return text(table(rewrite[key], repr(key)), "str")
