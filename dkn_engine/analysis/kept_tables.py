"""An analysis's table as a Parquet file that is read back, and as JSON for other programs."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from dkn_engine.errors import UserError
from dkn_engine.files.plain_json import plain
from dkn_engine.statistics.table import Comparison, Conditions, Row, Sample, Table
from dkn_engine.statistics.words import findings
from dkn_engine.store.schema import to_parquet

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "dkn_engine analysis"
FORMAT_VERSION = 1
SUFFIX = ".parquet"
_MADE_FROM = b"dkn_engine.made_from"
_RECORDS = {"rows": Row, "comparisons": Comparison, "samples": Sample}


def to_json(table: Table) -> str:
    """The whole table with its findings in words; numbers that are not finite become null."""
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    document = {**head, **plain(table), "findings": findings(table)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def to_bytes(table: Table, made_from: Mapping[str, Any]) -> bytes:
    """The contents of a Parquet file of one row: the table, bit for bit, settings as JSON.

    Args:
        made_from: what the table depends on, as plain data for JSON.
    """
    import pyarrow as pa

    row = dataclasses.asdict(table) | {"settings": json.dumps(plain(table.settings))}
    return to_parquet(
        pa.Table.from_pylist([row], schema=_schema()), {_MADE_FROM: json.dumps(made_from)}
    )


def read_table(path: Path) -> tuple[Table, dict[str, Any]]:
    """A table that was written by :func:`to_bytes`, and what it was made from.

    Raises:
        UserError: the file cannot be read, is damaged, or is no analysis of this version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if file.schema_arrow.remove_metadata() != _schema():
                raise ValueError("its columns are another version's")
            made_from = json.loads(file.metadata.metadata[_MADE_FROM])
            (row,) = file.read().to_pylist()
        records = {
            name: tuple(_record(kind, r) for r in row[name]) for name, kind in _RECORDS.items()
        }
        settings = json.loads(row["settings"])
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not an analysis that can be read: {reason}") from error
    return Table(**row | records | {"settings": settings, "notes": tuple(row["notes"])}), made_from


def _record(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    conditions = tuple((name, value) for name, value in fields["conditions"])
    return kind(**{**fields, "conditions": conditions})


@functools.cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    pair = pa.list_(pa.list_(pa.string()))
    types = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
    types[Conditions] = pair
    columns = {
        name: pa.list_(pa.struct([(n, types[h]) for n, h in get_type_hints(kind).items()]))
        for name, kind in _RECORDS.items()
    }
    text = pa.string()
    columns |= {"analysis": text, "seed": pa.int64(), "settings": text, "notes": pa.list_(text)}
    return pa.schema([(f.name, columns[f.name]) for f in dataclasses.fields(Table)])
