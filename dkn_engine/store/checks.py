"""The tables of a chunk against their schema and against one another.

What no digest or checksum tells (files of older versions, of another program) is seen from the
columns that say the same thing twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args

from dkn_engine.store.schema import LATER, MAY_BE_NULL, schema
from dkn_engine.types import Status

if TYPE_CHECKING:
    import pyarrow as pa


def other_columns(found: pa.Schema, name: str) -> str | None:
    """Why a file's columns are not those of a table, or None; later ones may be absent."""
    import pyarrow as pa

    there = set(found.names)
    expected = pa.schema([f for f in schema(name) if f.name in there or f.name not in LATER])
    if found.equals(expected):
        return None
    for field in expected:
        if field.name not in there:
            return f"has no column {field.name!r}"
        if found.field(field.name).type != field.type:
            return (
                f"column {field.name!r} must be {field.type}; found {found.field(field.name).type}"
            )
    return f"must have the columns {', '.join(expected.names)}; found {', '.join(found.names)}"


def with_later_columns(table: pa.Table, name: str) -> pa.Table:
    """A table as an older version wrote it, with the columns of today; the later ones are empty."""
    import pyarrow as pa

    wanted = schema(name)
    there = set(table.column_names)
    for field in wanted:
        if field.name not in there:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(wanted.names)


def misfit(tables: Mapping[str, pa.Table]) -> tuple[str, str] | None:
    """The first table that is not in order or does not belong to ``facts``, and why; or None.

    Args:
        tables: of a chunk, by name, each with the columns of its schema.
    """
    for name, table in tables.items():
        reason = _nulls(table, name) or _stranger(name, tables)
        if reason is not None:
            return name, reason
    return None


def _nulls(table: pa.Table, name: str) -> str | None:
    import pyarrow.types as kinds

    for column in table.column_names:
        values = table[column]
        if values.null_count and column not in MAY_BE_NULL[name]:
            return f"column {column!r} has {values.null_count} empty cells"
        if kinds.is_list(values.type) and values.combine_chunks().flatten().null_count:
            return f"column {column!r} has empty cells in its lists"
    return None


def _stranger(name: str, tables: Mapping[str, pa.Table]) -> str | None:
    """Why a table's rows do not belong to those of ``facts``, or None."""
    facts, table = tables["facts"], tables[name]
    ids = facts["fact_id"].to_pylist()
    if name == "facts":
        return _repeated(facts) or _inner(facts)
    groups = [key for key, _ in itertools.groupby(table["fact_id"].to_pylist())]
    present = set(groups)
    if groups != [i for i in ids if i in present]:
        return "its rows are not those of the facts beside it"
    if name == "neurons":
        chosen = table.filter(table["selected"])
        if chosen["score"].null_count:
            return "selected neurons without a score"
        if not table["borderline_order"].is_valid().equals(table["borderline"]):
            return "borderline neurons without their order"
        return _counted(chosen, facts, "n_neurons")
    if name == "components":
        lengths = [table[c].combine_chunks().value_lengths() for c in ("layers", "indices")]
        if not lengths[0].equals(lengths[1]):
            return "layers and indices are not equally long"
        return _numbered(table, "component") or _counted(table, facts, "n_components")
    return _numbered(table, "layer") or _summed(table, facts)


def _repeated(facts: pa.Table) -> str | None:
    for column in ("fact_id", "position"):
        values = facts[column].to_pylist()
        if len(set(values)) < len(values):
            return f"{column} {next(v for v in values if values.count(v) > 1)!r} is there twice"
    return None


def _inner(facts: pa.Table) -> str | None:
    columns = ("fact_id", "status", "n_components", "dkn", "is_degenerate")
    sizes = [facts[f"subset_{c}"].combine_chunks() for c in ("probabilities", "masks")]
    if not sizes[0].value_lengths().equals(sizes[1].value_lengths()):
        return "subset_probabilities and subset_masks are not equally long"
    objective = facts["subset_objective"].combine_chunks().value_lengths().to_pylist()
    for own, n in zip(objective, sizes[1].value_lengths().to_pylist(), strict=True):
        if own and own != n:
            return "subset_objective and subset_masks are not equally long"
    for fact_id, status, n, dkn, degenerate in zip(
        *(facts[c].to_pylist() for c in columns), strict=True
    ):
        if status not in get_args(Status):
            return f"fact {fact_id!r} has the unknown status {status!r}"
        if any(not 0 <= i < n for i in dkn) or degenerate != (len(dkn) >= 2):
            return f"fact {fact_id!r} has the DKN {dkn} of {n} components"
    lengths = facts["pair_interactions"].combine_chunks().value_lengths().to_pylist()
    counts = facts["n_neurons"].to_pylist()
    for fact_id, pairs, n in zip(facts["fact_id"].to_pylist(), lengths, counts, strict=True):
        if pairs and pairs != n * (n - 1) // 2:
            return f"fact {fact_id!r} has {pairs} interactions of {n} neurons"
    return None


def _counted(table: pa.Table, facts: pa.Table, column: str) -> str | None:
    """Whether there are as many rows for each fact as ``facts`` says."""
    counts = {v["values"]: v["counts"] for v in table["fact_id"].value_counts().to_pylist()}
    for fact_id, n in zip(facts["fact_id"].to_pylist(), facts[column].to_pylist(), strict=True):
        if counts.get(fact_id, 0) != n:
            return f"fact {fact_id!r} has {counts.get(fact_id, 0)} rows; {column} says {n}"
    return None


def _numbered(table: pa.Table, column: str) -> str | None:
    """Whether the rows of each fact are numbered 0, 1, 2, ..."""
    numbers = iter(table[column].to_pylist())
    for fact_id, group in itertools.groupby(table["fact_id"].to_pylist()):
        if any(next(numbers) != i for i, _ in enumerate(group)):
            return f"the rows of fact {fact_id!r} are not numbered 0, 1, ... in {column!r}"
    return None


def _summed(table: pa.Table, facts: pa.Table) -> str | None:
    sums = dict.fromkeys(facts["fact_id"].to_pylist(), 0)
    for fact_id, n in zip(table["fact_id"].to_pylist(), table["n_points"].to_pylist(), strict=True):
        sums[fact_id] += n
    for fact_id, n in zip(facts["fact_id"].to_pylist(), facts["n_points"].to_pylist(), strict=True):
        if sums[fact_id] != n:
            return f"fact {fact_id!r} has {sums[fact_id]} points; the facts beside it say {n}"
    return None
