"""LAMA: masked sentences, or subjects and answers with a template, as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dkn_engine.config import Blank
from dkn_engine.errors import FactError
from dkn_engine.facts.blanks import MASK
from dkn_engine.facts.json_records import (
    BadEntry,
    FactProblem,
    Read,
    convert_records,
    cut_blanks,
    entry_id,
    iter_records,
    label,
    one_of_many,
    table,
    text,
    texts,
)
from dkn_engine.facts.pararel import check_template, fill_templates
from dkn_engine.types import Fact

_TEMPLATES = "relations.jsonl"


def read(path: Path, blank: Blank) -> Read:
    """Facts of a file, or of a folder with ``relations.jsonl`` and files beside or below it.

    An entry's prompts come from its ``template``, else from the template of its ``predicate_id``
    in a ``relations.jsonl`` beside the file or one folder up, else from ``masked_sentences``.
    """
    if not path.is_dir():
        yield from _read_file(path, blank)
        return
    files = sorted(f for f in path.rglob("*.jsonl") if f.name != _TEMPLATES)
    if not files:
        raise FactError(f"{path}: expected .jsonl files of facts; there are none")
    for file in files:
        yield from one_of_many(_read_file(file, blank))


def is_folder(path: Path) -> bool:
    """Whether the folder is LAMA's: the templates of its relations lie in it."""
    return (path / _TEMPLATES).is_file()


def _read_file(path: Path, blank: Blank) -> Read:
    templates: dict[str, str] = {}
    for folder in (path.parent, path.parent.parent):
        if is_folder(folder):
            templates = _read_templates(folder / _TEMPLATES)
            break
    yield from convert_records(path, lambda value, line: _convert(value, line, templates, blank))


def _read_templates(path: Path) -> dict[str, str]:
    """Templates by relation; unusable ones are left out, as their entries will report."""
    templates: dict[str, str] = {}
    for record in iter_records(path):
        if isinstance(record, FactProblem) or not isinstance(record.value, Mapping):
            continue
        relation, template = record.value.get("relation"), record.value.get("template")
        if isinstance(relation, str) and isinstance(template, str):
            templates[relation] = template
    return templates


def _convert(value: Any, line: int, templates: Mapping[str, str], blank: Blank) -> Fact:
    entry = table(value)
    relation = label(entry, "predicate_id") or label(entry, "pred")
    name = entry_id(entry) or f"{relation or 'lama'}_{line}"
    try:
        answer = text(entry, "obj_label")
        subject = label(entry, "sub_label") or label(entry, "sub")
        template = label(entry, "template") or templates.get(relation or "")
        if template is not None:
            check_template(template)
            subject = text(entry, "sub_label")
            prompt, *others = fill_templates((template,), subject, blank)
        else:
            if "masked_sentences" not in entry:
                missing = "missing key 'masked_sentences' (and no 'template' for the relation)"
                raise BadEntry(missing)
            prompt, *others = cut_blanks(texts(entry, "masked_sentences"), MASK, blank)
    except BadEntry as error:
        raise BadEntry(error.reason, id=name, kind=error.kind) from None
    return Fact(name, prompt, answer, subject=subject, relation=relation, paraphrases=tuple(others))
