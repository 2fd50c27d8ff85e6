"""Analyses' tables as CSV, for people's tools."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dkn_engine.files.csv import csv_text
from dkn_engine.statistics.table import Conditions, Table

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
    return csv_text(head, body)


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
    return csv_text(head, body)


def samples_csv(tables: Mapping[str, Table]) -> str:
    """The values behind the rows, one a line, in the column ``measured``."""
    every = [(run, t.seed, s) for run, t in tables.items() for s in t.samples]
    names = _names(s.conditions for _, _, s in every)
    head = ("run", "unit", "figure", *names, "group", "measured", "seed")
    body = (
        (run, s.unit, s.figure, *_values(s.conditions, names), s.group, _number(s.value), seed)
        for run, seed, s in every
    )
    return csv_text(head, body)


def _names(conditions: Iterable[Conditions]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in conditions for name, _ in one))


def _values(conditions: Conditions, names: Sequence[str]) -> Iterator[str]:
    here = dict(conditions)
    return (here.get(name, "") for name in names)


def _numbers(record: Any, names: Sequence[str]) -> Iterator[object]:
    return (_number(getattr(record, name)) for name in names)


def _number(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
