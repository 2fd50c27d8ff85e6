"""A run directory that an earlier version of the engine wrote, in ``tests/data/run_format_2``."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dkn_engine as dkn
from dkn_engine.store import merge, read_manifest
from dkn_engine.store.schema import LATER, OWN_COLUMNS, TABLES, schema
from dkn_engine.types import (
    Answered,
    AttributionQuality,
    Degeneracy,
    FactResult,
    Selection,
)
from tests.store import test_store
from tests.store.test_store import (
    CONFIG,
    FACTS,
    bits,
    open_run,
    parquet_bytes,
    result_for,
    without,
    write_all,
)

OLD = Path(__file__).parents[1] / "data" / "run_format_2"
# Columns of today that it lacks.
SINCE = set(schema("facts").names) - set(pq.read_schema(OLD / "facts-00000.parquet").names)


def of_then(fact: dkn.Fact) -> Any:
    """A result as it is read from that directory, bit by bit."""
    return bits(without(result_for(fact), SINCE))


class ConfigOfThen(dkn.Config):
    """The configuration as that version had it, without the settings that came later."""

    @property
    def hash(self) -> str:
        return str(read_manifest(OLD)["config_hash"])

    def written(self) -> dict[str, Any]:
        settings: dict[str, Any] = read_manifest(OLD)["config"]
        return settings


@pytest.fixture(autouse=True)
def _config_of_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_store, "CONFIG", ConfigOfThen(facts_per_chunk=CONFIG.facts_per_chunk))


@pytest.mark.parametrize("table", TABLES)
def test_the_schema_is_the_one_that_was_written(table: str) -> None:
    """But for what came later, whose columns stand last."""
    then = pq.read_schema(OLD / f"{table}-00000.parquet")
    today = schema(table)
    assert then.equals(pa.schema([field for field in today if field.name in then.names]))
    assert {field.name for field in today} - set(then.names) <= set(LATER)


def test_it_is_read_bit_for_bit() -> None:
    assert [bits(r) for r in dkn.load_results(OLD)] == [of_then(f) for f in FACTS]


def test_what_is_written_today_has_the_same_bytes(tmp_path: Path) -> None:
    """The same tables; also the same bytes where the same version of Parquet's library writes."""
    with open_run(tmp_path) as run:
        write_all(run)
    for file in OLD.glob("*.parquet"):
        old, new = pq.ParquetFile(file), pq.ParquetFile(tmp_path / file.name)
        is_facts = file.name.startswith("facts")
        if old.metadata.created_by == new.metadata.created_by and not is_facts:
            assert file.read_bytes() == (tmp_path / file.name).read_bytes()
        facts_old = old.read().replace_schema_metadata()
        facts_new = new.read().replace_schema_metadata()
        kept = facts_new.drop_columns(list(SINCE)) if is_facts else facts_new
        assert repr(facts_old.to_pylist()) == repr(kept.to_pylist())  # NaN is its own text.
    manifests = [read_manifest(path) | {"created": "", "versions": {}} for path in (OLD, tmp_path)]
    assert manifests[0] == manifests[1]


def test_it_is_resumed_and_merged(tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(OLD, path)
    for file in path.glob("*-00001.parquet"):
        file.unlink()
    with open_run(path) as run:
        assert run.done_chunks() == {0, 2}
        write_all(run)
    expected = [of_then(f) for f in FACTS]
    expected[2:4] = [bits(result_for(f)) for f in FACTS[2:4]]
    assert [bits(r) for r in dkn.load_results(path)] == expected
    assert merge(tmp_path / "out", [OLD]) == len(FACTS)
    assert [bits(r) for r in dkn.load_results(tmp_path / "out")] == [of_then(f) for f in FACTS]
    assert parquet_bytes(tmp_path / "out") == parquet_bytes(OLD)
    assert read_manifest(tmp_path / "out") == read_manifest(OLD)


def test_a_result_is_its_four_records() -> None:
    whole = result_for(FACTS[0])
    parts: list[Any] = [
        kind(**{f.name: getattr(whole, f.name) for f in dataclasses.fields(kind)})
        for kind in (Answered, Selection, Degeneracy, AttributionQuality)
    ]
    names = [f.name for part in parts for f in dataclasses.fields(part)]
    assert names == [f.name for f in dataclasses.fields(FactResult)]
    assert bits(FactResult.of(*parts)) == bits(whole)


def test_every_field_of_a_result_has_a_column() -> None:
    """So a field that is added without one is seen here and not in a run that lacks it."""
    without = {
        f.name for f in dataclasses.fields(FactResult) if not {"columns", "drops"} & set(f.metadata)
    }
    assert without == set()
    assert {"probability", "dkn", "n_reference"} <= set(OWN_COLUMNS)
