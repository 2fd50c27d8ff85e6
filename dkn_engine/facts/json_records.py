"""What the formats share: JSON records with line numbers, checked fields, prompts from blanks."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from dkn_engine.config import Blank
from dkn_engine.errors import FactError
from dkn_engine.facts.blanks import MASK
from dkn_engine.files.strict_json import decoder, parse_json
from dkn_engine.files.visible_text import without_space
from dkn_engine.types import Fact

_GZIP = b"\x1f\x8b"
FIELDS = tuple(f.name for f in dataclasses.fields(Fact))


@dataclass(frozen=True, slots=True)
class FactProblem:
    """Why an entry of a file did not become a fact.

    Attributes:
        file: path of the file.
        line: line on which the entry begins, from 1; None where no line can be named.
        id: the entry's id, if it could be read.
        reason: what was expected and what arrived.
        kind: ``broken``: the entry has a mistake; ``blank``: it has none, but its blank is not at
            the end, so a causal model cannot continue it.
    """

    file: str
    line: int | None
    id: str | None
    reason: str
    kind: Literal["broken", "blank"] = "broken"

    def __str__(self) -> str:
        # An id may hold line breaks, the text is one line.
        parts = (self.file, self.line, self.id and " ".join(self.id.split()))
        return f"{':'.join(str(p) for p in parts if p is not None)}: {self.reason}"

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"file": self.file, "line": self.line, "id": self.id, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Located:
    """A fact and the place it was read from."""

    file: str
    line: int | None
    fact: Fact


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON value and the line on which it begins."""

    line: int
    value: Any


class UnreadableFile(FactError):
    """A file that yields nothing at all: in a folder of many a problem, alone an error."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class BadEntry(Exception):
    """An entry that cannot become a fact; turned into a ``FactProblem`` inside this package."""

    def __init__(
        self, reason: str, *, id: str | None = None, kind: Literal["broken", "blank"] = "broken"
    ) -> None:
        super().__init__(reason)
        self.reason, self.id, self.kind = reason, id, kind


Convert = Callable[[Any, int], Fact]
Strip = Callable[[str], str]
Read = Iterator[Located | FactProblem]


def convert_records(path: Path, convert: Convert) -> Read:
    """Facts and problems of one file of JSON lines, or of a JSON list.

    ``convert`` makes a fact of an entry and its line, or raises ``BadEntry``.

    Raises:
        FactError: the file cannot be read or is empty.
    """
    for record in iter_records(path):
        if isinstance(record, FactProblem):
            yield record
            continue
        try:
            fact = convert(record.value, record.line)
        except BadEntry as error:
            name = error.id or entry_id(record.value)
            yield FactProblem(str(path), record.line, name, error.reason, error.kind)
        else:
            yield Located(str(path), record.line, fact)


def iter_records(path: Path) -> Iterator[Record | FactProblem]:
    """Values of a file of JSON lines, or of a JSON list, one at a time.

    Raises:
        FactError: the file cannot be read or is empty.
    """
    try:
        with opened(path) as file:
            start = file.read(4096)
        if not start.removeprefix(b"\xef\xbb\xbf").strip():
            raise UnreadableFile(path, "the file is empty; expected facts as JSON")
        is_list = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        yield from _list_records(path) if is_list else _line_records(path)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableFile(path, f"cannot be read: {reason}") from error


def opened(path: Path) -> IO[bytes]:
    """The file to be read, unpacked if it is gzip's, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    return cast("IO[bytes]", gzip.open(path)) if packed else path.open("rb")


def one_of_many(items: Read) -> Read:
    """The items of one file of a folder; if it cannot be read, a problem that says so."""
    try:
        yield from items
    except UnreadableFile as error:
        yield FactProblem(str(error.path), None, None, error.reason)


def _line_records(path: Path) -> Iterator[Record | FactProblem]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield Record(number, parse_json(line.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                yield FactProblem(str(path), number, None, _describe(error))


def _list_records(path: Path) -> Iterator[Record | FactProblem]:
    """Elements of a JSON list; those before a mistake are kept, since they are whole."""
    try:
        with opened(path) as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield FactProblem(str(path), None, None, _describe(error))
        return
    parser = decoder()
    position, line, counted, comma = _skip_space(text, 0) + 1, 1, 0, False
    while True:
        position = _skip_space(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]" and not comma:
            position = _skip_space(text, position + 1)
            if position < len(text):
                line += text.count("\n", counted, position)
                found = repr(text[position : position + 20])
                reason = f"broken JSON: expected the end of the file after the list; got {found}"
                yield FactProblem(str(path), line, None, reason)
            return
        try:
            value, position = parser.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield FactProblem(str(path), line, None, _describe(error))
            return
        yield Record(line, value)
        position = _skip_space(text, position)
        after = text[position : position + 1]
        if after not in {",", "]"}:
            found = repr(after) if after else "the end of the file"
            reason = f"broken JSON: expected ',' or ']' after the entry; got {found}"
            yield FactProblem(str(path), line, entry_id(value), reason)
            return
        comma = after == ","
        position += comma


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _describe(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"not UTF-8: byte 0x{byte:02x} at offset {error.start}; save the file as UTF-8"
    if isinstance(error, RecursionError):
        return "broken JSON: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    return f"broken JSON: {error}"


def entry_id(value: Any) -> str | None:
    """The id of an entry, under any of the names that the formats use, or None."""
    if isinstance(value, Mapping):
        for key in ("id", "uuid", "case_id"):
            name = value.get(key)
            if isinstance(name, str | int) and not isinstance(name, bool) and str(name).strip():
                # Half of a surrogate pair could not be printed.
                return str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return None


def table(value: Any, what: str = "the entry") -> Mapping[str, Any]:
    """The value, which must be a JSON object."""
    if not isinstance(value, Mapping):
        raise BadEntry(f"{what} must be an object; got {type(value).__name__}")
    return value


def text(value: Mapping[str, Any], key: str, strip: Strip = without_space) -> str:
    """A required text that holds more than space, without the space at its ends."""
    if key not in value:
        raise BadEntry(f"missing key {key!r}")
    content = value[key]
    if not isinstance(content, str):
        raise BadEntry(f"{key!r} must be text; got {type(content).__name__}")
    return _checked(content, key, strip)


def label(value: Mapping[str, Any], key: str) -> str | None:
    """An optional text; a number counts as its digits, since ids and years often are numbers."""
    content = value.get(key)
    if content is None:
        return None
    if isinstance(content, bool) or not isinstance(content, str | int):
        raise BadEntry(f"{key!r} must be text; got {type(content).__name__}")
    return _checked(str(content), key)


def required_label(value: Mapping[str, Any], key: str) -> str:
    """As :func:`label`, but the key must be there."""
    content = label(value, key)
    if content is None:
        there = key in value
        raise BadEntry(f"{key!r} must be text; got null" if there else f"missing key {key!r}")
    return content


def texts(value: Mapping[str, Any], key: str, strip: Strip = without_space) -> tuple[str, ...]:
    """An optional list of texts; null is none."""
    content = value.get(key)
    if content is None:
        return ()
    if isinstance(content, np.ndarray):  # Of a program's own mapping, not of a file.
        content = content.tolist()
    if not isinstance(content, list | tuple):
        raise BadEntry(f"{key!r} must be a list of texts; got {type(content).__name__}")
    for item in content:
        if not isinstance(item, str):
            raise BadEntry(f"{key!r} must be a list of texts; got {type(item).__name__} in it")
    return tuple(_checked(item, key, strip) for item in content)


def _checked(content: str, key: str, strip: Strip = without_space) -> str:
    if not without_space(content):
        raise BadEntry(f"{key!r} is empty")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair; a tokenizer cannot.
        raise BadEntry(f"{key!r} is not valid Unicode: it holds a lone surrogate") from None
    return strip(content)


def distinct(items: Iterable[str], without: Sequence[str] = ()) -> tuple[str, ...]:
    """The items in order, each once, leaving out those of ``without``."""
    return tuple(i for i in dict.fromkeys(items) if i not in without)


def cut_blank(sentence: str, mark: str, blank: Blank) -> str | None:
    """The prompt in front of a blank at the end, or None if the blank is elsewhere.

    Args:
        sentence: text with one blank; a full stop may follow it, with or without space.
        mark: how the dataset spells its blank.
        blank: with ``literal``, a blank elsewhere is kept as text, as in the released code; with
            ``keep``, every blank stays, spelled ``[MASK]``.

    Raises:
        BadEntry: no blank, several, or nothing in front of it (``keep``: beside it).
    """
    if sentence.count(mark) != 1:
        raise BadEntry(f"expected one blank {mark}; got {sentence.count(mark)} in {sentence!r}")
    head, _, tail = sentence.partition(mark)
    if blank == "keep":
        if not (head + tail).strip(" \t."):
            raise BadEntry(f"nothing beside the blank {mark} in {sentence!r}")
        return without_space(f"{head}{MASK}{tail}")
    if tail.strip(" \t."):
        return without_space(sentence) if blank == "literal" else None
    prompt = without_space(head)
    if not prompt:
        raise BadEntry(f"nothing in front of the blank {mark} in {sentence!r}")
    return prompt


def cut_blanks(sentences: Iterable[str], mark: str, blank: Blank) -> tuple[str, ...]:
    """Distinct prompts of those sentences whose blank is at the end.

    Raises:
        BadEntry: none is, or a sentence has not exactly one blank.
    """
    prompts = [cut_blank(sentence, mark, blank) for sentence in sentences]
    kept = distinct(p for p in prompts if p is not None)
    if not kept:
        reason = f"no sentence has its blank {mark} at the end ({len(prompts)} given)"
        raise BadEntry(reason, kind="blank" if prompts else "broken")
    return kept
