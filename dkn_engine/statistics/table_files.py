"""An analysis's table as CSV for people's tools and as JSON that can be read back."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from dkn_engine.analysis.table_text import findings
from dkn_engine.errors import UserError
from dkn_engine.files.strict_json import parse_json
from dkn_engine.report.records import plain
from dkn_engine.statistics.table import Comparison, Conditions, Row, Sample, Table

FORMAT = "dkn_engine analysis"
FORMAT_VERSION = 1
_ROW = ("mean", "ci_low", "ci_high", "n", "median", "control")
_COMPARISON = ("mean", "ci_low", "ci_high", "n", "p_value", "p_corrected", "verdict")


def rows_csv(tables: Mapping[str, Table]) -> str:
    """All rows of one analysis's tables; the key of each table is its ``run`` (model, facts, ...).

    Columns: ``run``, ``figure``, one for each condition, ``group``, ``mean``, ``ci_low``,
    ``ci_high``, ``n``, ``median``, ``control``, ``seed``.
    """
    every = [(run, t.seed, r) for run, t in tables.items() for r in t.rows]
    names = _names(r.conditions for _, _, r in every)
    head = ("run", "figure", *names, "group", *_ROW, "seed")
    body = (
        (run, r.figure, *_values(r.conditions, names), r.group, *_numbers(r, _ROW), seed)
        for run, seed, r in every
    )
    return to_csv(head, body)


def comparisons_csv(tables: Mapping[str, Table]) -> str:
    """All comparisons, in the same form, with both p-values and the verdict in words."""
    every = [(run, t.seed, c) for run, t in tables.items() for c in t.comparisons]
    names = _names(c.conditions for _, _, c in every)
    head = ("run", "figure", *names, "group", "against", *_COMPARISON, "seed")
    body = (
        (
            run,
            c.figure,
            *_values(c.conditions, names),
            c.group,
            c.against,
            *_numbers(c, _COMPARISON),
            seed,
        )
        for run, seed, c in every
    )
    return to_csv(head, body)


def samples_csv(tables: Mapping[str, Table]) -> str:
    """The values behind the rows, one a line, in the column ``measured``."""
    every = [(run, t.seed, s) for run, t in tables.items() for s in t.samples]
    names = _names(s.conditions for _, _, s in every)
    head = ("run", "unit", "figure", *names, "group", "measured", "seed")
    body = (
        (run, s.unit, s.figure, *_values(s.conditions, names), s.group, _number(s.value), seed)
        for run, seed, s in every
    )
    return to_csv(head, body)


def _names(conditions: Iterable[Conditions]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in conditions for name, _ in one))


def _values(conditions: Conditions, names: Sequence[str]) -> Iterator[str]:
    here = dict(conditions)
    return (here.get(name, "") for name in names)


def _numbers(record: Any, names: Sequence[str]) -> Iterator[object]:
    return (_number(getattr(record, name)) for name in names)


def _number(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def to_csv(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Rows under their columns' names, lines ended by a line feed.

    Raises:
        ValueError: two columns have one name.
    """
    if len(set(head)) < len(head):
        raise ValueError(f"conditions must not be named as other columns are; got {list(head)}")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(body)
    return text.getvalue()


def to_json(table: Table, **more: Any) -> str:
    """The whole table with its findings in words; ``more`` are further keys of the document.

    Numbers that are not finite become null.
    """
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **more,
        **plain(table),
        "findings": findings(table),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read_table(path: Path) -> tuple[Table, dict[str, Any]]:
    """A table that was written by :func:`to_json`, and the whole document.

    Raises:
        UserError: the file cannot be read, or is no analysis that this version can read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return from_json(text, path)


def from_json(text: str, path: Path) -> tuple[Table, dict[str, Any]]:
    """A table of :func:`to_json`, and the whole document.

    Args:
        text: the file's contents.
        path: for the message.

    Raises:
        UserError: it is no analysis that this version can read.
    """
    try:
        return _table(parse_json(text))
    except RecursionError:
        raise UserError(f"{path} is not an analysis that can be read: nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is not an analysis that can be read: {error}") from error


def _table(data: Any) -> tuple[Table, dict[str, Any]]:
    """The same of parsed JSON.

    Raises:
        ValueError: it is not of the form.
    """
    data = _of(data, dict, "it")
    if data.get("format") != FORMAT or data.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"it is {data.get('format')!r}, version {data.get('format_version')!r}")
    table = Table(
        _of(data.get("analysis"), str, "analysis"),
        _records(Row, data, "rows"),
        _records(Comparison, data, "comparisons"),
        _records(Sample, data, "samples"),
        _of(data.get("seed"), int, "seed"),
        _of(data.get("settings"), dict, "settings"),
        tuple(_of(note, str, "a note") for note in _of(data.get("notes"), list, "notes")),
    )
    return table, data


def _records(kind: type[Any], data: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    hints = get_type_hints(kind)
    return tuple(_record(kind, hints, one, key) for one in _of(data.get(key), list, key))


def _record(kind: type[Any], hints: Mapping[str, Any], data: Any, key: str) -> Any:
    data = _of(data, dict, f"one of {key}")
    if set(data) != set(hints):
        odd = min(set(data) ^ set(hints))
        raise ValueError(f"one of {key} {'lacks' if odd in hints else 'has an unknown'} {odd!r}")
    return kind(**{name: _value(data[name], hint, name) for name, hint in hints.items()})


def _value(value: Any, hint: Any, name: str) -> Any:
    if hint is float:
        return math.nan if value is None else float(_of(value, float, name))
    if hint == Conditions:
        pairs = [_of(pair, list, name) for pair in _of(value, list, name)]
        return tuple((_of(key, str, name), _of(value, str, name)) for key, value in pairs)
    return _of(value, hint, name)


def _of(value: Any, kind: type[Any], what: str) -> Any:
    """The value, if it is of the kind; by class, since True is an instance of int."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{what} must be {kind.__name__}; found {type(value).__name__}")
    return value
