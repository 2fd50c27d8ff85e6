"""A run directory read back as records, DataFrame and Dataset, and what its page says of it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import dkn_engine as dkn
from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.store import manifest, read_results
from dkn_engine.store.schema import TABLES, schema
from tests.store.test_store import FACTS, bits, files_of, open_run, result_for, write_all

PAGE = Path(__file__).parents[2] / "docs" / "interchange.md"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    with open_run(path) as directory:
        write_all(directory)
    return path


def test_records_are_bit_equal_to_what_was_written(run: Path) -> None:
    found = dkn.load_results(run)
    assert [bits(r) for r in found] == [bits(result_for(f)) for f in FACTS]
    assert [bits(r) for r in found] == [bits(r) for r in read_results(run)]


def cells(run: Path, table: str) -> list[dict[str, Any]]:
    """The rows as the files have them, by Arrow alone."""
    parts = [pq.ParquetFile(f).read() for f in sorted(run.glob(f"{table}-*.parquet"))]
    return [row for part in parts for row in part.to_pylist()]


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if expected is None or (isinstance(expected, float) and math.isnan(expected)):
        return found is None or found != found or str(found) == "<NA>"
    return bool(found == expected)


@pytest.mark.parametrize("table", TABLES)
def test_a_data_frame_holds_every_cell_of_a_table(run: Path, table: Any) -> None:
    frame = dkn.load_results(run, "pandas", table=table)
    assert list(frame.columns) == schema(table).names
    rows = cells(run, table)
    assert len(frame) == len(rows)
    for i, row in enumerate(rows):
        assert all(same(frame[name].iloc[i], cell) for name, cell in row.items())


@pytest.mark.parametrize("table", TABLES)
def test_a_dataset_holds_every_cell_of_a_table(run: Path, table: Any) -> None:
    dataset = dkn.load_results(run, "datasets", table=table)
    assert dataset.column_names == schema(table).names
    assert all(
        map(
            same, (list(r.values()) for r in dataset), (list(r.values()) for r in cells(run, table))
        )
    )
    assert len(dataset) == len(cells(run, table))


def test_rows_are_in_the_order_of_the_facts_whatever_the_chunks(tmp_path: Path) -> None:
    with open_run(tmp_path) as directory:
        for chunk, start in ((0, 2), (1, 0)):  # as facts sorted by length would be
            directory.write_chunk(chunk, files_of(FACTS[start : start + 2], start))
    order = [f.id for f in FACTS[:4]]
    assert [r.fact_id for r in dkn.load_results(tmp_path)] == order
    assert list(dkn.load_results(tmp_path, "pandas")["fact_id"]) == order
    neurons = dkn.load_results(tmp_path, "pandas", table="neurons")
    assert list(dict.fromkeys(neurons["fact_id"])) == order


def test_a_run_that_goes_on_gives_what_is_there(tmp_path: Path) -> None:
    with open_run(tmp_path) as directory:
        assert dkn.load_results(tmp_path) == []
        assert len(dkn.load_results(tmp_path, "pandas")) == 0
        assert len(dkn.load_results(tmp_path, "datasets", table="neurons")) == 0
        write_all(directory)
    assert len(dkn.load_results(tmp_path)) == len(FACTS)


@pytest.mark.parametrize("package", ["pandas", "datasets"])
def test_a_missing_package_is_named(
    run: Path, package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install {package} \("):
        dkn.load_results(run, package)
    assert len(dkn.load_results(run)) == len(FACTS)


def test_arguments_that_are_not_allowed_are_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as_ must be one of facts, pandas, datasets; got 'polars'"):
        dkn.load_results(run, "polars")  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"table must be one of facts, neurons, .* got 'scores'"):
        dkn.load_results(run, "pandas", table="scores")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="table must be 'facts' with as_='facts'"):
        dkn.load_results(run, table="neurons")  # type: ignore[call-overload]
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        dkn.load_results(tmp_path)


def test_the_packages_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, dkn_engine, dkn_engine.store; dkn_engine.load_results; "
        "print(*[m for m in ('pandas', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout.split(), done.stderr) == ([], "")


def documented() -> dict[str, list[tuple[str, str]]]:
    """Columns and types by table, out of the page's tables."""
    text = PAGE.read_text(encoding="utf-8")
    found = {}
    for table in TABLES:
        section = text.split(f"### `{table}`\n")[1].split("\n#")[0]
        found[table] = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE)
    return found


@pytest.mark.parametrize("table", TABLES)
def test_the_page_lists_the_schemas_columns(table: str) -> None:
    assert documented()[table] == [(f.name, str(f.type)) for f in schema(table)]


def test_the_page_gives_the_format_version() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"format version **{manifest.FORMAT_VERSION}**" in text
