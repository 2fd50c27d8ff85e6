"""ParaRel: bags of filled prompts, or patterns and vocabulary in folders."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from dkn_engine.config import Blank
from dkn_engine.errors import FactError
from dkn_engine.facts.blanks import MASK
from dkn_engine.facts.json_records import (
    BadEntry,
    FactProblem,
    Located,
    Read,
    convert_records,
    cut_blanks,
    entry_id,
    iter_records,
    label,
    one_of_many,
    table,
    text,
)
from dkn_engine.types import Fact

_SUBJECT, _ANSWER = "[X]", "[Y]"
# The second names are those of the dataset's own repository.
_PATTERNS = ("patterns", "pattern_data/graphs_json", "data/pattern_data/graphs_json")
_VOCAB = ("vocab", "trex_lms_vocab", "data/trex_lms_vocab")


def read(path: Path, blank: Blank) -> Read:
    """Facts of a bags file, or of a folder with patterns and vocabulary."""
    return _read_folder(path, blank) if path.is_dir() else _read_bags(path, blank)


def is_folder(path: Path) -> bool:
    """Whether the folder has one of the layouts that :func:`read` accepts."""
    return _subfolder(path, _PATTERNS) is not None and _subfolder(path, _VOCAB) is not None


def _read_bags(path: Path, blank: Blank) -> Read:
    """One fact a bag ``[[prompt, answer, relation], ...]``."""
    numbers = itertools.count()
    return convert_records(path, lambda value, _: _convert_bag(value, next(numbers), blank))


def _convert_bag(bag: Any, number: int, blank: Blank) -> Fact:
    if not isinstance(bag, list) or not bag:
        raise BadEntry(f"a bag must be a list of [prompt, answer, relation]; got {bag!r:.60}")
    for entry in bag:
        ok = isinstance(entry, list) and len(entry) == 3 and all(isinstance(x, str) for x in entry)
        if not ok:
            raise BadEntry(f"expected [prompt, answer, relation], three texts; got {entry!r:.60}")
    rows = [{"prompt": p, "answer": a, "relation": r} for p, a, r in bag]
    relation = text(rows[0], "relation")
    name = f"{relation}_{number}"
    try:
        answers = {text(row, "answer") for row in rows}
        if len(answers) != 1:
            raise BadEntry(f"the answers of a bag must agree; got {sorted(answers)}")
        prompt, *others = cut_blanks([text(row, "prompt") for row in rows], MASK, blank)
    except BadEntry as error:
        raise BadEntry(error.reason, id=name, kind=error.kind) from None
    return Fact(name, prompt, answers.pop(), relation=relation, paraphrases=tuple(others))


def _subfolder(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _read_folder(path: Path, blank: Blank) -> Read:
    patterns, vocab = _subfolder(path, _PATTERNS), _subfolder(path, _VOCAB)
    if patterns is None or vocab is None:
        missing = " or ".join(_PATTERNS[:2] if patterns is None else _VOCAB[:2])
        raise FactError(f"{path}: a ParaRel folder must hold a folder {missing}; it has none")
    files = sorted(patterns.glob("*.jsonl"), key=lambda f: (len(f.stem), f.stem))
    if not files:
        raise FactError(f"{patterns}: expected pattern files such as P36.jsonl; there are none")
    for file in files:
        yield from one_of_many(_read_relation(file, vocab / file.name, blank))


def _read_relation(patterns: Path, vocab: Path, blank: Blank) -> Read:
    if not vocab.is_file():
        yield FactProblem(str(vocab), None, None, f"missing: {patterns} has no vocabulary")
        return
    templates: list[str] = []
    for record in iter_records(patterns):
        if isinstance(record, FactProblem):
            yield record
            continue
        try:
            template = text(table(record.value), "pattern")
            check_template(template)
        except BadEntry as error:
            yield FactProblem(str(patterns), record.line, None, error.reason)
        else:
            templates.append(template)
    yield from _read_vocab(vocab, patterns.stem, tuple(templates), blank)


def check_template(template: str) -> None:
    """Raise ``BadEntry`` unless the template has a subject [X] and one answer [Y]."""
    if _SUBJECT not in template or template.count(_ANSWER) != 1:
        raise BadEntry(f"a template must hold {_SUBJECT} and one {_ANSWER}; got {template!r}")


def fill_templates(templates: tuple[str, ...], subject: str, blank: Blank) -> tuple[str, ...]:
    """Distinct prompts about the subject from templates with their answer [Y] at the end.

    Raises:
        BadEntry: no template has its answer at the end.
    """
    # Cut before the subject goes in: a subject may itself look like a blank.
    prompts = cut_blanks(templates, _ANSWER, blank)
    return tuple(p.replace(_SUBJECT, subject) for p in prompts)


def _read_vocab(path: Path, relation: str, templates: tuple[str, ...], blank: Blank) -> Read:
    if not templates:
        yield FactProblem(str(path), None, None, f"no pattern of {relation} can be used")
        return

    def convert(value: Any, line: int) -> Fact:
        entry = table(value)
        name = entry_id(entry) or f"{relation}_{line}"
        try:
            subject, answer = text(entry, "sub_label"), text(entry, "obj_label")
            prompt, *others = fill_templates(templates, subject, blank)
        except BadEntry as error:
            raise BadEntry(error.reason, id=name, kind=error.kind) from None
        named = label(entry, "predicate_id") or relation
        return Fact(
            name, prompt, answer, subject=subject, relation=named, paraphrases=tuple(others)
        )

    for item in convert_records(path, convert):
        if isinstance(item, Located) or item.kind != "blank":
            yield item
        else:  # Every entry would say the same.
            yield FactProblem(item.file, None, None, f"{relation}: {item.reason}", "blank")
            return
