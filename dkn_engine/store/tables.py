"""FactResult to Arrow tables and back: one row a fact in ``facts``, details in the others.

Every array comes back bit-equal: floats are never dictionary-encoded (that would merge NaNs),
NaN stays NaN, and null means absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.store import digests
from dkn_engine.store.schema import (
    COMPONENT_FIGURES,
    DROP_FIELDS,
    OWN_COLUMNS,
    TABLES,
    schema,
    to_parquet,
)
from dkn_engine.types import CONTROLS, Component, Drops, FactResult

if TYPE_CHECKING:
    import pyarrow as pa


def chunk_files(
    results: Sequence[FactResult], positions: Sequence[int], config_hash: str
) -> dict[str, bytes]:
    """The Parquet files of a chunk by table name, in the order of writing; see :func:`encode`."""
    return to_files(encode(results, positions, config_hash))


def to_files(tables: Mapping[str, pa.Table]) -> dict[str, bytes]:
    """Tables as Parquet files by name, in the order of writing; the last notes their digests."""
    *others, last = TABLES
    files = {name: to_parquet(tables[name]) for name in others}
    noted = {digests.KEY: digests.note(files, last)}
    return files | {last: digests.sealed(to_parquet(tables[last], noted))}


def encode(
    results: Sequence[FactResult], positions: Sequence[int], config_hash: str
) -> dict[str, pa.Table]:
    """Arrow tables by name, in the order of writing.

    Args:
        results: of a chunk.
        positions: of their facts among all facts of the run.
        config_hash: of the run.

    Raises:
        ValueError: a result has a control without a column, or arrays that do not belong
            together (names the fact).
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for position, result in zip(positions, results, strict=True):
        _check(result)
        rows["neurons"].extend(_neuron_rows(result))
        rows["components"].extend(_component_rows(result))
        rows["attribution"].extend(_attribution_rows(result))
        rows["facts"].append({"position": position} | _fact_row(result, config_hash))
    import pyarrow as pa

    return {name: pa.Table.from_pylist(rows[name], schema=schema(name)) for name in TABLES}


def joined(pieces: Sequence[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """The tables of some chunks or none, one behind the other."""
    import pyarrow as pa

    return {
        name: pa.concat_tables([schema(name).empty_table(), *(piece[name] for piece in pieces)])
        for name in TABLES
    }


def in_order(tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Tables with their rows in the order of the facts."""
    position = tables["facts"]["position"].to_numpy()
    ordered = {}
    for name, table in tables.items():
        rows = position[fact_rows(table, tables["facts"])]
        ordered[name] = table.take(np.argsort(rows, kind="stable"))
    return ordered


def fact_rows(table: pa.Table, facts: pa.Table) -> NDArray[np.int64]:
    """For each row of a table the row of its fact, which is there, in ``facts``."""
    import pyarrow.compute as pc

    rows = pc.index_in(table["fact_id"], value_set=facts["fact_id"].combine_chunks())
    return np.array(rows.to_numpy(), dtype=np.int64)


def decode(tables: Mapping[str, pa.Table]) -> list[FactResult]:
    """Inverse of :func:`encode`."""
    neurons = _ByFact(tables["neurons"])
    components = _ByFact(tables["components"])
    attribution = _ByFact(tables["attribution"])
    results = []
    for row in tables["facts"].to_pylist():
        fact_id = row["fact_id"]
        results.append(
            FactResult(
                **_own(row),
                **_neurons(neurons[fact_id]),
                **_attribution(attribution[fact_id]),
                components=tuple(_component(r) for r in components[fact_id].to_pylist()),
                candidates=_drops(row, "candidates"),
                controls={
                    name: drops for name in CONTROLS if (drops := _drops(row, name)) is not None
                },
            )
        )
    return results


def n_rows(file: bytes) -> int:
    """Rows of a Parquet file in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: int = pq.read_metadata(pa.BufferReader(file)).num_rows
    return rows


def _check(result: FactResult) -> None:
    unknown = sorted(set(result.controls) - set(CONTROLS))
    if unknown:
        raise ValueError(
            f"fact {result.fact_id!r}: controls must be among {', '.join(CONTROLS)}; "
            f"got {unknown[0]!r}"
        )
    for left, right in (
        ("neurons", "scores"),
        ("convergence_delta", "n_points"),
        ("subset_probabilities", "subset_masks"),
        ("subset_objective", "subset_masks"),
    ):
        a, b = len(getattr(result, left)), len(getattr(result, right))
        if a != b and (a or left != "subset_objective"):
            raise ValueError(
                f"fact {result.fact_id!r}: {left} and {right} must be equally long; got {a} and {b}"
            )
    n, n_pairs = len(result.neurons), len(result.pair_interactions)
    if n_pairs not in {0, n * (n - 1) // 2}:
        raise ValueError(
            f"fact {result.fact_id!r}: pair_interactions must be none or those of the pairs of its "
            f"{n} neurons; got {n_pairs}"
        )


def _text(value: str) -> str:
    """Text that UTF-8 can hold; a lone surrogate in a dataset must not end a run."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _fact_row(result: FactResult, config_hash: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: _text(value) if isinstance(value := getattr(result, name), str) else value
        for name in OWN_COLUMNS
    }
    for prefix, drops in [("candidates", result.candidates), *result.controls.items()]:
        for name in DROP_FIELDS if drops is not None else ():
            row[f"{prefix}_{name}"] = getattr(drops, name)
    delta = np.abs(result.convergence_delta)
    row |= {
        "n_neurons": len(result.neurons),
        "n_components": len(result.components),
        "is_degenerate": result.is_degenerate,
        "holds": result.holds,
        "max_abs_convergence_delta": float(delta.max()) if delta.size else float("nan"),
        "n_points": int(result.n_points.sum()),
        "config_hash": config_hash,
    }
    return row


def _neuron_rows(result: FactResult) -> Iterable[dict[str, Any]]:
    """The selected neurons in their order, then the borderline ones that were not selected."""
    order = {(int(n[0]), int(n[1])): i for i, n in enumerate(result.borderline)}
    selected = [(int(n[0]), int(n[1])) for n in result.neurons]
    rest = [neuron for neuron in order if neuron not in set(selected)]
    scores = [*result.scores, *[None] * len(rest)]
    for i, (neuron, score) in enumerate(zip([*selected, *rest], scores, strict=True)):
        yield {
            "fact_id": _text(result.fact_id),
            "layer": neuron[0],
            "index": neuron[1],
            "score": score,
            "selected": i < len(selected),
            "borderline": neuron in order,
            "borderline_order": order.get(neuron),
        }


def _component_rows(result: FactResult) -> Iterable[dict[str, Any]]:
    for i, component in enumerate(result.components):
        yield {
            "fact_id": _text(result.fact_id),
            "component": i,
            "in_dkn": i in result.dkn,
            "layers": component.neurons[:, 0],
            "indices": component.neurons[:, 1],
            **{name: getattr(component, name) for name in COMPONENT_FIGURES},
        }


def _attribution_rows(result: FactResult) -> Iterable[dict[str, Any]]:
    pairs = zip(result.convergence_delta, result.n_points, strict=True)
    for layer, (delta, points) in enumerate(pairs):
        yield {
            "fact_id": _text(result.fact_id),
            "layer": layer,
            "convergence_delta": delta,
            "n_points": points,
        }


class _ByFact:
    """Consecutive rows of a table by fact id; an id without rows has an empty table."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._spans: dict[str, tuple[int, int]] = {}
        for i, fact_id in enumerate(table["fact_id"].to_pylist()):
            start, n = self._spans.get(fact_id, (i, 0))
            self._spans[fact_id] = start, n + 1

    def __getitem__(self, fact_id: str) -> pa.Table:
        return self._table.slice(*self._spans.get(fact_id, (0, 0)))


def _neurons(table: pa.Table) -> dict[str, Any]:
    pairs = np.stack([_column(table, "layer", np.int32), _column(table, "index", np.int32)], axis=1)
    selected = _column(table, "selected", np.bool_)
    borderline = _column(table, "borderline", np.bool_)
    order = table["borderline_order"].drop_null().to_numpy()
    return {
        "neurons": np.ascontiguousarray(pairs[selected]),
        "scores": _column(table.filter(table["selected"]), "score", np.float32),
        "borderline": np.ascontiguousarray(pairs[borderline][np.argsort(order)]),
    }


def _attribution(table: pa.Table) -> dict[str, Any]:
    return {
        "convergence_delta": _column(table, "convergence_delta", np.float32),
        "n_points": _column(table, "n_points", np.int32),
    }


def _component(row: Mapping[str, Any]) -> Component:
    neurons = np.array([row["layers"], row["indices"]], dtype=np.int32).reshape(2, -1).T
    return Component(
        neurons=np.ascontiguousarray(neurons),
        **{name: row[name] for name in COMPONENT_FIGURES},
    )


def _drops(row: Mapping[str, Any], prefix: str) -> Drops | None:
    if row[f"{prefix}_n"] is None:
        return None
    # What an older version did not write keeps its default.
    there = {name: row[f"{prefix}_{name}"] for name in DROP_FIELDS}
    found = {name: value for name, value in there.items() if value is not None}
    return Drops(**found | {"objective": tuple(found.get("objective", ()))})


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are a column; what an older version did not write keeps its default."""
    fields = {
        name: np.array(row[name], dtype=column.kind[5:-1])
        if column.kind[:5] == "list<"
        else row[name]
        for name, column in OWN_COLUMNS.items()
        if row[name] is not None or not column.later
    }
    return fields | {"dkn": tuple(row["dkn"])}


def _column(table: pa.Table, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    # A copy: Arrow's own buffers are read-only.
    return np.array(table[name].to_numpy(), dtype=dtype)
