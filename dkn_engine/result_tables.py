"""The tables of a run directory, read whole and checked against one another before use."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dkn_engine.errors import RunDirectoryError
from dkn_engine.store import read_manifest
from dkn_engine.store.schema import CONTROLS, DROP_FIELDS, TABLES, schema
from dkn_engine.types import Status

if TYPE_CHECKING:
    import pyarrow as pa

_FACTS_FILE = re.compile(r"facts-(\d+)\.parquet")
_MAY_BE_NULL = {
    "neurons": {"score", "borderline_order"},
    "components": set[str](),
    "attribution": set[str](),
    "facts": {"relation", *(f"{p}_{f}" for p in ("candidates", *CONTROLS) for f in DROP_FIELDS)},
}


def iter_tables(path: str | Path) -> Iterator[dict[str, pa.Table]]:
    """The four tables of one chunk after the other; ``position`` tells the order of the facts.

    A chunk counts once its ``facts`` table is there, which is written last. What a checksum cannot
    see (files of another run, of another chunk, rows that are missing) is seen from the columns
    that say the same thing twice.

    Args:
        path: a run directory, complete or not.

    Raises:
        RunDirectoryError: ``path`` is not a run directory, or a table in it is damaged or does not
            belong to the others; the message names the file.
    """
    path = Path(path)
    manifest = _manifest(path)
    seen: dict[str | int, str] = {}
    for number in _chunks(path):
        files = {name: path / f"{name}-{number}.parquet" for name in TABLES}
        tables = {name: _read(file, name) for name, file in files.items()}
        for name, file in files.items():
            reason = _nulls(tables[name], name) or _misfit(name, tables)
            if reason is not None:
                raise _damaged(file, reason)
        facts = tables["facts"]
        reason = _foreign(facts, manifest)
        if reason is not None:
            raise _damaged(files["facts"], reason)
        for column in ("fact_id", "position"):
            for key in facts[column].to_pylist():
                if key in seen:
                    raise _damaged(files["facts"], f"{column} {key!r} is in {seen[key]}, too")
                seen[key] = files["facts"].name
        yield tables


def _manifest(path: Path) -> Mapping[str, Any]:
    try:
        return read_manifest(path)
    except RecursionError:
        raise RunDirectoryError(f"{path}: the manifest is nested too deeply") from None


def _chunks(path: Path) -> list[str]:
    """The numbers of the chunks that are there, as they are spelt in file names."""
    found = [match[1] for file in path.iterdir() if (match := _FACTS_FILE.fullmatch(file.name))]
    return sorted(found, key=int)


def _read(file: Path, name: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table: it takes "name=value" folders of the path for columns.
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            expected = schema(name)
            if not parquet.schema_arrow.equals(expected):
                raise _damaged(file, _other_columns(parquet.schema_arrow, expected))
            table = parquet.read()
        table.validate(full=True)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _damaged(file, f"cannot be read: {' '.join(str(error).split())}") from error
    return table


def _other_columns(found: pa.Schema, expected: pa.Schema) -> str:
    for field in expected:
        if field.name not in found.names:
            return f"has no column {field.name!r}"
        if found.field(field.name).type != field.type:
            return (
                f"column {field.name!r} must be {field.type}; found {found.field(field.name).type}"
            )
    return f"must have the columns {', '.join(expected.names)}; found {', '.join(found.names)}"


def _nulls(table: pa.Table, name: str) -> str | None:
    import pyarrow.types as kinds

    for column in table.column_names:
        values = table[column]
        if values.null_count and column not in _MAY_BE_NULL[name]:
            return f"column {column!r} has {values.null_count} empty cells"
        if kinds.is_list(values.type) and values.combine_chunks().flatten().null_count:
            return f"column {column!r} has empty cells in its lists"
    return None


def _misfit(name: str, tables: Mapping[str, pa.Table]) -> str | None:
    """Why a table's rows do not belong to those of ``facts``, or None."""
    facts, table = tables["facts"], tables[name]
    if name == "facts":
        return _inner(facts)
    ids = facts["fact_id"].to_pylist()
    groups = [key for key, _ in itertools.groupby(table["fact_id"].to_pylist())]
    present = set(groups)
    if groups != [i for i in ids if i in present]:
        return "its rows are not those of the facts beside it"
    if name == "neurons":
        chosen = table.filter(table["selected"])
        if chosen["score"].null_count:
            return "selected neurons without a score"
        if table["borderline_order"].null_count != table.num_rows - _true(table["borderline"]):
            return "borderline neurons without their order"
        return _counted(chosen, facts, "n_neurons")
    if name == "components":
        lengths = [table[c].combine_chunks().value_lengths() for c in ("layers", "indices")]
        if not lengths[0].equals(lengths[1]):
            return "layers and indices are not equally long"
        return _numbered(table, "component") or _counted(table, facts, "n_components")
    return _numbered(table, "layer") or _summed(table, facts)


def _true(column: pa.ChunkedArray) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(column).as_py() or 0)


def _inner(facts: pa.Table) -> str | None:
    columns = ("fact_id", "status", "n_components", "dkn", "is_degenerate")
    sizes = [facts[f"subset_{c}"].combine_chunks() for c in ("probabilities", "masks")]
    if not sizes[0].value_lengths().equals(sizes[1].value_lengths()):
        return "subset_probabilities and subset_masks are not equally long"
    for fact_id, status, n, dkn, degenerate in zip(
        *(facts[c].to_pylist() for c in columns), strict=True
    ):
        if status not in get_args(Status):
            return f"fact {fact_id!r} has the unknown status {status!r}"
        if any(not 0 <= i < n for i in dkn) or degenerate != (len(dkn) >= 2):
            return f"fact {fact_id!r} has the DKN {dkn} of {n} components"
    return None


def _foreign(facts: pa.Table, manifest: Mapping[str, Any]) -> str | None:
    """Why a chunk is not of the manifest's run, or None."""
    config_hash, n = manifest["config_hash"], manifest["facts"]["n"]
    others = set(facts["config_hash"].to_pylist()) - {config_hash}
    if others:
        return f"belongs to the configuration {min(others)}, the manifest to {config_hash}"
    beyond = [i for i in facts["position"].to_pylist() if not 0 <= i < n]
    if beyond:
        return f"has the fact of position {beyond[0]}, the manifest {n} facts"
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


def _damaged(file: Path, reason: str) -> RunDirectoryError:
    return RunDirectoryError(f"{file}: {reason}; remove it and rerun the command that wrote it")
