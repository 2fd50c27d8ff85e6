"""Names, columns and types of a run directory's tables, from what the fields of results say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

from dkn_engine.types import Column, Component, Drops, FactResult

if TYPE_CHECKING:
    import pyarrow as pa

# In the order of writing: a chunk is done when its last table is there.
TABLES = ("neurons", "components", "attribution", "facts")


def _kept(record: type[FactResult | Component | Drops], table: str) -> Iterator[Column]:
    """The columns that keep a record's fields in a table, each with its name, in their order."""
    for field in dataclasses.fields(record):
        for column in field.metadata.get("columns", ()):
            if column.table == table:
                yield dataclasses.replace(column, name=column.name or field.name)
        for family in field.metadata.get("drops", ()) if table == "facts" else ():
            for column in _kept(Drops, table):
                yield dataclasses.replace(column, name=f"{family}_{column.name}")


_FACTS = tuple(_kept(FactResult, "facts"))
_FACT_ID, _LAYER = Column("string", "fact_id"), Column("int32", "layer")
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "neurons": (_FACT_ID, *_kept(FactResult, "neurons")),
    "components": (
        _FACT_ID,
        Column("int32", "component"),
        Column("bool", "in_dkn"),
        *_kept(Component, "components"),
    ),
    "attribution": (_FACT_ID, _LAYER, *_kept(FactResult, "attribution")),
    "facts": (
        Column("int64", "position"),
        *(c for c in _FACTS if not c.later),
        Column("string", "config_hash"),
        *(c for c in _FACTS if c.later),
    ),
}
# Fields of a FactResult that are a column of the same name.
OWN_COLUMNS: Mapping[str, Column] = {
    field.name: column
    for field in dataclasses.fields(FactResult)
    for column in field.metadata.get("columns", ())
    if column.table == "facts" and not column.name
}
DROP_FIELDS = tuple(field.name for field in dataclasses.fields(Drops))
COMPONENT_FIGURES = tuple(c.name for c in _kept(Component, "components") if c.kind == "float64")
# Columns of ``facts`` that files of older versions lack; they are read as empty there.
LATER = tuple(c.name for c in _FACTS if c.later)
LATER_COUNTS = tuple(n for n, c in OWN_COLUMNS.items() if c.later and c.kind == "int32")
MAY_BE_NULL = {name: {c.name for c in of if c.nullable} for name, of in COLUMNS.items()}


@cache
def schema(table: str) -> pa.Schema:
    """The Arrow schema of a table; the same in every chunk."""
    import pyarrow as pa

    def type_of(kind: str) -> pa.DataType:
        inner = kind.removeprefix("list<").removesuffix(">")
        return pa.type_for_alias(kind) if inner == kind else pa.list_(pa.type_for_alias(inner))

    return pa.schema([(column.name, type_of(column.kind)) for column in COLUMNS[table]])


def to_parquet(table: pa.Table, notes: Mapping[bytes, str] | None = None) -> bytes:
    """A table as a Parquet file's contents, with page checksums.

    Args:
        table: of any schema.
        notes: key-value metadata of the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    strings = [f.name for f in table.schema if pa.types.is_string(f.type)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=strings,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(notes or {}))
    contents: bytes = sink.getvalue().to_pybytes()
    return contents
