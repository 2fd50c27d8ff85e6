"""Tables with a header, comma- or tab-separated: one fact a row, columns as the fields of ``Fact``.

Several texts in one cell (aliases, paraphrases, wrong answers) have ``|`` between them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from dkn_engine.config import Blank
from dkn_engine.facts import jsonl
from dkn_engine.facts.json_records import (
    FIELDS,
    BadEntry,
    FactProblem,
    Located,
    Read,
    UnreadableFile,
    entry_id,
    opened,
)

NEEDED = ("prompt", "answer")
_LISTS = ("aliases", "paraphrases", "wrong_answers")
_BETWEEN = "|"
_SEPARATORS = ("\t", ";", ",")  # A header has no tab or semicolon but as its separator.


def header_of(path: Path) -> list[str] | None:
    """The columns of a table of facts; None if the first line is no header of one."""
    try:
        with opened(path) as file:
            line = file.readline(10_000).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError):
        return None
    columns = _columns(line)
    return columns if set(NEEDED) <= set(columns) else None


def read(path: Path, blank: Blank) -> Read:
    """Facts of the rows.

    Raises:
        FactError: the file cannot be read, is no text in UTF-8, or its header lacks a column that
            is needed or has one that is no field.
    """
    try:
        with opened(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            yield from _rows(path, text, blank)
    except UnicodeDecodeError as error:
        raise UnreadableFile(path, f"is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableFile(path, f"cannot be read: {reason}") from error


def _rows(path: Path, text: io.TextIOWrapper, blank: Blank) -> Read:
    first = text.readline()
    columns = _columns(first)
    _require_columns(path, columns)
    rows = csv.reader(text, delimiter=_separator(first), strict=True)
    while True:
        line = rows.line_num + 2  # after the header, from 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield FactProblem(str(path), line, None, f"broken row: {error}")
            return
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield _converted(path, line, columns, row, blank)


def _converted(
    path: Path, line: int, columns: list[str], row: list[str], blank: Blank
) -> Located | FactProblem:
    entry: Mapping[str, object] = {}
    try:
        if len(row) != len(columns):
            raise BadEntry(f"expected {len(columns)} cells, as the header has; got {len(row)}")
        entry = dict(_cells(columns, row))
        return Located(str(path), line, jsonl.fact_of(entry, blank))
    except BadEntry as error:
        return FactProblem(str(path), line, entry_id(entry), error.reason, error.kind)


def _cells(columns: list[str], row: list[str]) -> Iterator[tuple[str, str | list[str]]]:
    """The cells that are not empty; those that are needed in any case, to be refused by name."""
    for column, cell in zip(columns, row, strict=True):
        if cell.strip() and column in _LISTS:
            yield column, [part for part in cell.split(_BETWEEN) if part.strip()]
        elif cell.strip() or column in NEEDED:
            yield column, cell


def _columns(header: str) -> list[str]:
    try:
        row = next(csv.reader([header.strip()], delimiter=_separator(header)), [])
    except csv.Error:
        return []
    return [column.strip().lower() for column in row]


def _separator(header: str) -> str:
    return next((mark for mark in _SEPARATORS if mark in header), ",")


def _require_columns(path: Path, columns: list[str]) -> None:
    for name in NEEDED:
        if name not in columns:
            raise UnreadableFile(
                path,
                f"a table's header must have prompt and answer; got {columns}",
            )
    for name in columns:
        if name not in FIELDS:
            raise UnreadableFile(path, f"unknown column {name!r}; known: {', '.join(FIELDS)}")
        if columns.count(name) > 1:
            raise UnreadableFile(path, f"the column {name!r} is there twice")
