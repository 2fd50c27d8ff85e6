"""Facts from files: what the datasets call a question becomes a prompt and its answer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

from dkn_engine.config import Blank, Dates
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts import counterfact, csv_table, jsonl, lama, pararel, templama
from dkn_engine.facts.dates import dated
from dkn_engine.facts.json_records import FactProblem, Read, Record, iter_records
from dkn_engine.facts.shared import SharedPrompts
from dkn_engine.files.sections import integer
from dkn_engine.types import Fact

logger = logging.getLogger(__name__)

Format = Literal["auto", "templama", "pararel", "lama", "counterfact", "jsonl", "csv"]
# Each raises FactError where a file or folder cannot be read, is empty or has another layout.
_READERS: dict[str, Callable[[Path, Blank], Read]] = {
    "templama": templama.read,
    "pararel": pararel.read,
    "lama": lama.read,
    "counterfact": counterfact.read,
    "jsonl": jsonl.read,
    "csv": csv_table.read,
}
_DATA = Path(__file__).resolve().parent / "packaged"
_PACKAGED = {
    "demo": _DATA / "demo.jsonl",
    "demo-unselected": _DATA / "demo_unselected.jsonl",
    "demo-new": _DATA / "demo_new.jsonl",
}
_SNIFFED_RECORDS = 100
# Keys by which an entry's format is told, the first that it has.
_KEYS = {
    "requested_rewrite": "counterfact",
    "query": "templama",
    "masked_sentences": "lama",
    "sub_label": "lama",
    "obj_label": "lama",
    "prompt": "jsonl",
}


def load_facts(
    source: str | Path,
    format: str = "auto",
    limit: int | None = None,
    *,
    blank: str = "skip",
    dates: str = "auto",
    strict: bool = False,
    problems: list[FactProblem] | None = None,
) -> list[Fact]:
    """All usable facts of a file or folder; see :func:`iter_facts` for the arguments.

    Without ``problems`` the number of entries left out is logged as a warning; so are facts with
    the same prompt and different answers, in any case.

    Raises:
        FactError: the source cannot be read, its format is unknown, no entry can be used, or
            ``strict`` and an entry is broken.
        UserError: an argument has a value that is not allowed.

    Example:
        >>> from dkn_engine import load_facts
        >>> [(fact.prompt, fact.answer) for fact in load_facts("demo", limit=1)]
        [('The capital of Germany is', 'Berlin')]
    """
    found: list[FactProblem] = [] if problems is None else problems
    known = len(found)
    read = iter_facts(
        source, format, limit, blank=blank, dates=dates, strict=strict, problems=found
    )
    shared = SharedPrompts()
    facts = list(shared.watch(read))
    left_out = found[known:]
    if left_out and not facts:
        count = f"the first of {len(left_out)} problems" if len(left_out) > 1 else "the problem"
        raise FactError(f"{source}: no fact can be used; {count}: {left_out[0]}")
    if left_out and problems is None:
        message = "%s: entries left out: %d; the first: %s"
        logger.warning(message, source, len(left_out), left_out[0])
    shared.warn()
    return facts


def iter_facts(
    source: str | Path,
    format: str = "auto",
    limit: int | None = None,
    *,
    blank: str = "skip",
    dates: str = "auto",
    strict: bool = False,
    problems: list[FactProblem] | None = None,
) -> Iterator[Fact]:
    """Yield the usable facts of a file or folder, reading as far as they are asked for.

    Args:
        source: a path, ``"demo"`` (facts that the demo model knows), ``"demo-unselected"`` (a
            fixed sample drawn without looking at the model) or ``"demo-new"`` (made-up facts that
            no model knows).
        format: ``templama``, ``pararel`` (bags file, or folder of patterns and vocabulary),
            ``lama``, ``counterfact``, ``jsonl`` (keys as the fields of ``Fact``), ``csv`` (a header
            with the same names; commas, semicolons or tabs), or ``auto``, which looks at the
            content.
        limit: stop after so many facts.
        blank: a blank that is not at the end of its sentence: ``skip`` the entry, or keep the
            blank as ``literal`` text, as the released code does; ``keep`` leaves every blank where
            it is, spelled ``[MASK]``, for encoders.
        dates: put a fact's date in front of its prompts ("In 2012, ..."): ``prompt``, wherever
            there is one; ``omit``, nowhere; ``auto``, in TempLAMA's files, whose entries differ by
            it, and in no others.
        strict: raise at the first broken entry. A skipped blank is not a broken entry.
        problems: receives what was left out, in the order of the file.

    Raises:
        FactError: the source cannot be read or is empty, its format is unknown, or ``strict`` and
            an entry is broken; the message names file, line and id.
        UserError: an argument has a value that is not allowed.
    """
    if format not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise FactError(f"format must be one of {known}; got {format!r}")
    if blank not in get_args(Blank):
        raise UserError(f"blank must be one of {', '.join(get_args(Blank))}; got {blank!r}")
    if dates not in get_args(Dates):
        raise UserError(f"dates must be one of {', '.join(get_args(Dates))}; got {dates!r}")
    if limit is not None:
        given, limit = limit, integer(limit)
        if limit is None or limit < 0:
            raise UserError(f"limit must be None or an integer of 0 or more; got {given!r}")
    path = _locate(source)
    found = _sniff(path) if format == "auto" else format
    items = _READERS[found](path, cast("Blank", blank))
    facts = _usable(items, limit, strict, [] if problems is None else problems)
    in_front = dates == "prompt" or (dates == "auto" and found == "templama")
    return map(dated, facts) if in_front else facts


def _locate(source: str | Path) -> Path:
    if isinstance(source, str) and source in _PACKAGED:
        return _PACKAGED[source]
    if not isinstance(source, str | Path):
        raise TypeError(f"source must be a path or 'demo'; got {type(source).__name__}")
    path = Path(source)
    try:
        path = path.expanduser()
        if path.is_dir() or path.is_file():
            return path
        reason = "is not a file" if path.exists() else "there is no such file or folder"
    # A path may be too long, hold a null character, or begin with the name of no user.
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"cannot be read: {error}"
    raise FactError(f"{path}: {reason}")


def _usable(
    items: Read, limit: int | None, strict: bool, problems: list[FactProblem]
) -> Iterator[Fact]:
    """Facts with ids of their own, until the limit; the rest goes to the problems."""
    places: dict[str, str] = {}
    while limit is None or len(places) < limit:
        item = next(items, None)
        if item is None:
            return
        if not isinstance(item, FactProblem):
            place = item.file if item.line is None else f"{item.file}:{item.line}"
            first = places.setdefault(item.fact.id, place)
            if first is place:
                yield item.fact
                continue
            reason = f"duplicate id; first at {first}"
            item = FactProblem(item.file, item.line, item.fact.id, reason)
        if strict and item.kind == "broken":
            raise FactError(str(item))
        problems.append(item)


def _sniff(path: Path) -> str:
    """The format of a file or folder by its content."""
    if path.is_dir():
        if pararel.is_folder(path):
            return "pararel"
        if lama.is_folder(path):
            return "lama"
        expected = "'patterns' and 'vocab' folders (ParaRel) or relations.jsonl (LAMA)"
        raise FactError(f"{path}: a folder of facts must hold {expected}; it has neither")
    if csv_table.header_of(path) is not None:
        return "csv"
    first: Record | FactProblem | None = None
    for record in itertools.islice(iter_records(path), _SNIFFED_RECORDS):
        # A broken first line must not hide the format of the others.
        found = _format_of(record.value) if isinstance(record, Record) else None
        if found is not None:
            return found
        first = first or record
    if path.suffix.lower() in {".csv", ".tsv"}:
        return "csv"  # whose header will be refused by its columns
    raise FactError(
        f"{path}: unknown format: {_seen(first)}; expected JSON, or a table whose header has "
        "prompt and answer"
    )


def _format_of(value: Any) -> str | None:
    if isinstance(value, list):
        return "pararel"
    known = _KEYS.items() if isinstance(value, dict) else ()
    return next((name for key, name in known if key in value), None)


def _seen(item: Record | FactProblem | None) -> str:
    if item is None:
        return "it holds no entry"
    if isinstance(item, FactProblem):
        return f"line {item.line}: {item.reason}"
    if isinstance(item.value, dict):
        # Keys may be anything, line breaks too.
        keys = " ".join(", ".join(item.value).split())[:200] or "(none)"
        return f"line {item.line} holds an object with the keys {keys}"
    return f"line {item.line} holds a {type(item.value).__name__}"
