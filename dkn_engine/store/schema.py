"""Names, columns and types of a run directory's tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dkn_engine.types import Drops

if TYPE_CHECKING:
    import pyarrow as pa

# In the order of writing: a chunk is done when its last table is there.
TABLES = ("neurons", "components", "attribution", "facts")
CONTROLS = ("random", "paraphrases", "unrelated", "mean_ablation")
DROP_FIELDS = tuple(f.name for f in dataclasses.fields(Drops))
# Columns of ``facts`` that files of older versions lack; they are read as empty there.
LATER_COUNTS = ("n_paraphrases_not_known", "n_reference", "n_reference_packaged")
_LATER_DROPS = ("excess", "n_redundancy")
LATER = (
    "excess",
    *(f"{prefix}_{name}" for prefix in ("candidates", *CONTROLS) for name in _LATER_DROPS),
    *LATER_COUNTS,
)
COMPONENT_FIGURES = ("birth", "death", "persistence", "probability_alone", "drop_if_suppressed")


def schema(table: str) -> pa.Schema:
    """The Arrow schema of a table; the same in every chunk."""
    import pyarrow as pa

    text, boolean = pa.string(), pa.bool_()
    i32, i64, f32, f64 = pa.int32(), pa.int64(), pa.float32(), pa.float64()
    fields: dict[str, list[tuple[str, pa.DataType]]] = {
        "neurons": [
            ("fact_id", text),
            ("layer", i32),
            ("index", i32),
            ("score", f32),
            ("selected", boolean),
            ("borderline", boolean),
            ("borderline_order", i32),
        ],
        "components": [
            ("fact_id", text),
            ("component", i32),
            ("in_dkn", boolean),
            ("layers", pa.list_(i32)),
            ("indices", pa.list_(i32)),
            *((name, f64) for name in COMPONENT_FIGURES),
        ],
        "attribution": [
            ("fact_id", text),
            ("layer", i32),
            ("convergence_delta", f32),
            ("n_points", i32),
        ],
        "facts": [
            ("position", i64),
            *((name, text) for name in ("fact_id", "status", "reason", "prompt", "answer")),
            ("relation", text),
            ("probability", f64),
            ("rank", i64),
            ("n_neurons", i32),
            ("n_components", i32),
            ("dkn", pa.list_(i32)),
            ("is_degenerate", boolean),
            ("partial_drop", f64),
            ("full_drop", f64),
            ("redundancy", f64),
            *(
                (f"{prefix}_{name}", i32 if name == "n" else f64)
                for prefix in ("candidates", *CONTROLS)
                for name in DROP_FIELDS
                if name not in _LATER_DROPS
            ),
            ("subset_probabilities", pa.list_(f64)),
            ("subset_masks", pa.list_(i64)),
            ("rest_suppressed", pa.list_(f64)),
            ("max_abs_convergence_delta", f32),
            ("n_points", i64),
            ("converged", boolean),
            ("path", text),
            ("config_hash", text),
            *((name, f64 if name.endswith("excess") else i32) for name in LATER),
        ],
    }
    return pa.schema(fields[table])


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
