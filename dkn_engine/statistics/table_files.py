"""Analyses' tables as CSV, for people's tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dkn_engine.files.csv import csv_text
from dkn_engine.statistics.table import Table


def rows_csv(tables: Mapping[str, Table]) -> str:
    """All rows of one analysis's tables; the key of each table is its ``run`` (model, facts, ...).

    Columns: ``run``, ``figure``, one for each condition, ``group``, ``mean``, ``ci_low``,
    ``ci_high``, ``n``, ``median``, ``control``, ``seed``.
    """
    columns = ("mean", "ci_low", "ci_high", "n", "median", "control")
    return _csv(tables, "rows", ("figure",), dict.fromkeys(columns))


def comparisons_csv(tables: Mapping[str, Table]) -> str:
    """All comparisons, in the same form, with both p-values and the verdict in words."""
    columns = ("against", "mean", "ci_low", "ci_high", "n", "p_value", "p_corrected", "verdict")
    return _csv(tables, "comparisons", ("figure",), dict.fromkeys(columns))


def samples_csv(tables: Mapping[str, Table]) -> str:
    """The values behind the rows, one a line, in the column ``measured``."""
    return _csv(tables, "samples", ("unit", "figure"), {"measured": "value"})


def _csv(
    tables: Mapping[str, Table],
    kind: str,
    before: tuple[str, ...],
    behind: Mapping[str, str | None],
) -> str:
    """All records of a kind, one a line: columns ``before`` the conditions and ``behind`` them.

    The latter are of the attribute that stands beside the column's name, if it is another.
    """
    records = [(run, t.seed, r) for run, t in tables.items() for r in getattr(t, kind)]
    names = tuple(dict.fromkeys(name for _, _, r in records for name, _ in r.conditions))

    def line(run: str, seed: int, record: Any) -> list[object]:
        conditions = dict(record.conditions)
        values = [getattr(record, attribute or name) for name, attribute in behind.items()]
        return [
            run,
            *(getattr(record, name) for name in before),
            *(conditions.get(name, "") for name in names),
            record.group,
            *(f"{value:.6g}" if isinstance(value, float) else value for value in values),
            seed,
        ]

    head = ("run", *before, *names, "group", *behind, "seed")
    return csv_text(head, (line(*record) for record in records))
