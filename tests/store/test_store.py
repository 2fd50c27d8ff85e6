"""The run directory: round trip, resume, kills, damage, two writers, settings of another run."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dkn_engine.config import AttributionConfig, Config, SelectionConfig
from dkn_engine.errors import RunDirectoryError
from dkn_engine.facts.scan import scan
from dkn_engine.models.fingerprint import Identity
from dkn_engine.store import RunDirectory, count_done, iter_results, read_manifest, read_results
from dkn_engine.store.checks import misfit
from dkn_engine.store.plan import CHUNKS_PER_WINDOW, WHOLE, Plan, Shard
from dkn_engine.store.reading import read_tables
from dkn_engine.store.schema import LATER, TABLES, schema, to_parquet
from dkn_engine.store.tables import chunk_files, encode
from dkn_engine.types import Component, Drops, Fact, FactResult

NAN = float("nan")
CONFIG = Config(facts_per_chunk=2)
FACTS = [Fact(id=f"f{i}", prompt=f"Prompt {i} is", answer="so", relation="P36") for i in range(5)]


def open_run(path: Path, **changes: Any) -> RunDirectory:
    arguments: dict[str, Any] = {
        "config": CONFIG,
        "identity": Identity("abc", "demo"),
        "facts": FACTS,
        "versions": {"dkn_engine": "0.1.0"},
    } | changes
    facts, per_chunk = arguments["facts"], arguments["config"].facts_per_chunk
    per_window = arguments.pop("chunks_per_window", CHUNKS_PER_WINDOW)
    plan = Plan(len(facts), per_chunk, per_window, arguments.pop("shard", WHOLE))
    scanned = scan(facts, plan.window)
    return RunDirectory.open(path, **(arguments | {"facts": scanned, "plan": plan}))


def files_of(facts: Sequence[Fact], start: int = 0) -> dict[str, bytes]:
    """The files of a chunk of consecutive facts."""
    positions = range(start, start + len(facts))
    return chunk_files([result_for(f) for f in facts], positions, CONFIG.hash)


def result_for(fact: Fact) -> FactResult:
    """A result with every field set, from a generator seeded by the fact."""
    rng = np.random.default_rng(int(fact.id[1:]))
    neurons = np.array([[3, 7], [1, 500], [3, 2], [0, 9]], dtype=np.int32)
    drops = Drops(rng.random(), rng.random(), NAN, 20, 0.1, -0.0, rng.random(), 17, 0.3)
    drops = dataclasses.replace(drops, objective=(0.75, NAN, -0.0, 0.25))
    return FactResult(
        fact_id=fact.id,
        status="ok",
        prompt=fact.prompt,
        answer=fact.answer,
        relation=fact.relation,
        probability=rng.random(),
        rank=1,
        neurons=neurons,
        scores=rng.random(4, dtype=np.float32),
        # One that was selected and one just below the threshold, not in order.
        borderline=np.array([[5, 1], [3, 2]], dtype=np.int32),
        connection_weights=np.array([-0.25], dtype=np.float32),
        components=(
            Component(neurons[[1, 0]], 1.5, float("inf"), NAN, rng.random(), rng.random()),
            Component(neurons[[3]], 0.0, 2.0, 2.0),
        ),
        subset_probabilities=np.array([rng.random(), NAN, 0.0, -0.0]),
        subset_masks=np.arange(4, dtype=np.int64),
        subset_objective=np.array([1.25, NAN, -0.0, -np.inf]),
        dkn=(0, 1),
        partial_drop=rng.random(),
        full_drop=rng.random(),
        redundancy=NAN,
        candidates=dataclasses.replace(drops, n=1),
        rest_suppressed=rng.random(3),
        pair_interactions=np.array([0.5, -0.0, NAN, -0.25, 1e-30, 2.0], dtype=np.float32),
        controls={"random": drops, "mean_ablation": Drops(0.5, NAN)},
        convergence_delta=np.array([1e-7, NAN, -0.0], dtype=np.float32),
        n_points=np.array([7, 15, 7], dtype=np.int32),
        converged=False,
        path="sweep",
        excess=rng.random(),
        n_paraphrases_not_known=2,
        n_reference=8,
        n_reference_packaged=5,
        n_paraphrases_known=0,
        null="regrouped",
        null_draws=19,
        null_passing=3,
        null_p=0.05,
    )


def bits(value: Any) -> Any:
    """A value that is equal only if dtype, shape and every bit are (so NaN equals NaN)."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, float):
        return np.float64(value).tobytes()
    if dataclasses.is_dataclass(value):
        return {f.name: bits(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [bits(v) for v in value]
    if isinstance(value, Mapping):
        return {k: bits(v) for k, v in value.items()}
    return value


def write_all(run: RunDirectory) -> None:
    for i in sorted(set(run.plan.chunks) - run.done_chunks()):
        run.write_chunk(i, files_of(FACTS[2 * i : 2 * i + 2], 2 * i))


def parquet_bytes(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.glob("*.parquet")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed")
    with open_run(path) as run:
        write_all(run)
    return path


def test_round_trip_is_bit_equal(undisturbed: Path) -> None:
    got = read_results(undisturbed)
    assert [bits(r) for r in got] == [bits(result_for(f)) for f in FACTS]
    assert [bits(r) for r in iter_results(undisturbed)] == [bits(r) for r in got]


@pytest.mark.parametrize("status", ["not_known", "skipped", "error"])
def test_result_without_arrays_round_trips(tmp_path: Path, status: Any) -> None:
    fact = Fact(id="", prompt="日本の首都は", answer="\ntokyo")
    empty = FactResult("", status, "answer has no token", fact.prompt, fact.answer)
    with open_run(tmp_path, facts=[fact]) as run:
        run.write_chunk(0, chunk_files([empty], [0], CONFIG.hash))
    assert [bits(r) for r in read_results(tmp_path)] == [bits(empty)]


def test_arrays_that_were_read_can_be_written_to(undisturbed: Path) -> None:
    result = read_results(undisturbed)[0]
    for f in dataclasses.fields(result):
        value = getattr(result, f.name)
        assert not isinstance(value, np.ndarray) or value.flags.writeable, f.name


def test_facts_table_has_one_row_a_fact_and_a_stable_schema(undisturbed: Path) -> None:
    tables = [pq.read_table(p) for p in sorted(undisturbed.glob("facts-*.parquet"))]
    assert [t["fact_id"].to_pylist() for t in tables] == [["f0", "f1"], ["f2", "f3"], ["f4"]]
    assert all(t.schema.equals(tables[0].schema) for t in tables)
    row = tables[0].to_pylist()[0]
    assert row["n_neurons"] == 4
    assert row["n_components"] == 2
    assert row["dkn"] == [0, 1]
    assert row["is_degenerate"] is True
    assert row["random_n"] == 20
    assert row["unrelated_n"] is None
    assert row["n_points"] == 29
    assert row["config_hash"] == CONFIG.hash


def test_neurons_table_lists_selected_and_borderline_neurons(undisturbed: Path) -> None:
    rows = pq.read_table(undisturbed / "neurons-00000.parquet").to_pylist()
    rows = [r for r in rows if r["fact_id"] == "f0"]
    assert [(r["layer"], r["index"]) for r in rows] == [(3, 7), (1, 500), (3, 2), (0, 9), (5, 1)]
    assert [r["selected"] for r in rows] == [True] * 4 + [False]
    assert [r["borderline"] for r in rows] == [False, False, True, False, True]


def test_lone_surrogate_in_text_does_not_end_a_run(tmp_path: Path) -> None:
    fact = Fact(id="f0", prompt="broken \ud800 text", answer="x")
    with open_run(tmp_path, facts=[fact]) as run:
        result = FactResult("f0", "error", prompt=fact.prompt)
        run.write_chunk(0, chunk_files([result], [0], CONFIG.hash))
    assert read_results(tmp_path)[0].prompt == r"broken \ud800 text"


def test_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    path = tmp_path / "layer=3"
    with open_run(path) as run:
        write_all(run)
    assert len(read_results(path)) == 5


def test_resume_goes_on_where_the_first_run_stopped(tmp_path: Path, undisturbed: Path) -> None:
    with open_run(tmp_path) as run:
        assert run.plan.n_chunks == 3
        run.write_chunk(1, files_of(FACTS[2:4], 2))
    assert count_done(tmp_path) == (2, 5)
    assert [r.fact_id for r in read_results(tmp_path)] == ["f2", "f3"]
    with open_run(tmp_path) as run:
        assert run.done_chunks() == {1}
        assert [bits(r) for r in run.read_window(0)] == [bits(result_for(f)) for f in FACTS[2:4]]
        write_all(run)
    assert count_done(tmp_path) == (5, 5)
    assert parquet_bytes(tmp_path) == parquet_bytes(undisturbed)


def test_no_facts_make_an_empty_run(tmp_path: Path) -> None:
    with open_run(tmp_path, facts=[]) as run:
        assert run.plan.n_chunks == 0
        assert run.done_chunks() == set()
    assert read_results(tmp_path) == []


def test_manifest_holds_what_the_run_was_made_from(undisturbed: Path) -> None:
    manifest = read_manifest(undisturbed)
    assert manifest["config_hash"] == CONFIG.hash
    assert Config.from_dict(manifest["config"]) == CONFIG
    assert manifest["model"] == {"name": "demo", "fingerprint": "abc"}
    assert manifest["facts"]["n"] == 5
    assert manifest["facts_per_chunk"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"config": Config(facts_per_chunk=2, selection=SelectionConfig(threshold=0.2))},
            r"selection\.threshold was 0\.1, is now 0\.2",
            id="config",
        ),
        pytest.param(
            {"config": Config(facts_per_chunk=3)}, "facts_per_chunk was 2, is now 3", id="chunk"
        ),
        pytest.param({"identity": Identity("xyz", "demo")}, r"model: was demo \(abc\)", id="model"),
        pytest.param({"facts": FACTS[:4]}, "facts: were 5, are now 4", id="fewer facts"),
        pytest.param({"facts": FACTS[::-1]}, r"facts: as many \(5\), but not", id="other order"),
    ],
)
def test_other_settings_are_refused(
    undisturbed: Path, changes: dict[str, Any], message: str
) -> None:
    before = parquet_bytes(undisturbed)
    with pytest.raises(RunDirectoryError, match=message):
        open_run(undisturbed, **changes)
    assert parquet_bytes(undisturbed) == before
    open_run(undisturbed).close()  # The refusal left no lock behind.


def test_same_config_written_another_way_is_accepted(undisturbed: Path) -> None:
    config = Config(attribution=AttributionConfig(tolerance=1e-3), facts_per_chunk=2)
    with open_run(undisturbed, config=config) as run:
        assert run.done_chunks() == {0, 1, 2}


def test_other_versions_are_noted_once_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_run(tmp_path, versions={"dkn_engine": "0.1.0", "code": "aa"}).close()
    for versions in ("bb", "bb", "cc", "bb"):
        open_run(tmp_path, versions={"dkn_engine": "0.1.0", "code": versions}).close()
    noted = [entry["versions"]["code"] for entry in read_manifest(tmp_path)["continued"]]
    assert noted == ["bb", "cc", "bb"]
    assert caplog.messages == [
        f"{tmp_path} is continued with other versions (code was {a}, is now {b}); its manifest "
        "lists both"
        for a, b in (("aa", "bb"), ("bb", "cc"), ("cc", "bb"))
    ]


def test_another_commit_with_the_same_code_is_no_other_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_run(tmp_path, versions={"dkn_engine": "0.1.0.dev1+gaa", "code": "aa"}).close()
    open_run(tmp_path, versions={"dkn_engine": "0.1.0.dev2+gbb", "code": "aa"}).close()
    assert not caplog.messages
    open_run(tmp_path, versions={"dkn_engine": "0.1.0.dev3+gcc", "code": "cc"}).close()
    (warning,) = caplog.messages
    assert "dkn_engine was 0.1.0.dev1+gaa, is now 0.1.0.dev3+gcc, code was aa" in warning


def test_a_whole_run_of_other_versions_is_told_and_kept(
    undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with open_run(tmp_path / "run", versions={"dkn_engine": "0.9"}) as run:
        assert run.done_chunks() == {0, 1, 2}
    (warning,) = caplog.messages
    assert "was made with other versions (" in warning
    assert "is not made again" in warning
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with (
        open_run(tmp_path),
        pytest.raises(RunDirectoryError, match=rf"another run \(process {os.getpid()}\)"),
    ):
        open_run(tmp_path)
    open_run(tmp_path).close()


def test_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        open_run(file)
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        read_results(file)
    assert file.read_text() == "mine"


def test_results_without_a_manifest_are_refused(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copy(undisturbed / "facts-00000.parquet", tmp_path)
    with pytest.raises(RunDirectoryError, match=r"facts-00000\.parquet.*no manifest\.json"):
        open_run(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "something else"}'])
def test_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"manifest\.json"):
        open_run(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == text


def paths_of(data: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in data.items():
        yield (*prefix, key)
        if isinstance(value, Mapping) and key not in {"config", "versions"}:
            yield from paths_of(value, (*prefix, key))


def test_every_key_of_the_manifest_is_checked(tmp_path: Path, undisturbed: Path) -> None:
    whole = read_manifest(undisturbed)
    paths = [path for path in paths_of(whole) if path != ("mask_token",)]
    assert len(paths) == 17
    for path in paths:
        values: tuple[Any, ...] = ("(absent)", [], -1, None, True)
        for value in values:
            broken: dict[str, Any] = copy.deepcopy(whole)
            table = broken
            for key in path[:-1]:
                table = table[key]
            if value == "(absent)":
                del table[path[-1]]
            else:
                table[path[-1]] = value
            (tmp_path / "manifest.json").write_text(json.dumps(broken))
            with pytest.raises(RunDirectoryError) as caught:
                read_results(tmp_path)
            found = re.search(r"damaged: ([\w.]+) is", str(caught.value))
            assert found is None or found[1] == ".".join(path)
            assert (found is None) == path[-1].startswith("format")


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("mask_token", ["<mask>", None], [3, True, ["<mask>"]]),
        ("traits", [{}, {"model": {"weights": "00"}}], [3, None, "x", [], {"model": "x"}]),
        ("continued", [[], [{"versions": {}}]], [3, None, {}, ["x"], [{"versions": "x"}]]),
    ],
)
def test_what_a_manifest_may_lack_is_checked_where_it_is_there(
    tmp_path: Path, undisturbed: Path, key: str, good: list[Any], bad: list[Any]
) -> None:
    whole = read_manifest(undisturbed)
    whole.pop(key, None)
    manifest = tmp_path / "manifest.json"
    for table in ({}, *({key: value} for value in good)):
        manifest.write_text(json.dumps({**whole, **table}))
        assert read_manifest(tmp_path) == {**whole, **table}
    for value in bad:
        manifest.write_text(json.dumps({**whole, key: value}))
        with pytest.raises(RunDirectoryError, match=rf"manifest.json is damaged: {key} is "):
            read_results(tmp_path)


def test_files_of_the_user_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.tmp", "facts-mine.parquet", "config.toml"):
        (tmp_path / name).write_text("mine")
    with open_run(tmp_path) as run:
        write_all(run)
    open_run(tmp_path).close()
    for name in ("notes.tmp", "facts-mine.parquet", "config.toml"):
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("table", ["neurons", "components", "attribution", "facts"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_damaged_chunk_is_computed_again(
    tmp_path: Path, undisturbed: Path, table: str, damage: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    file = path / f"{table}-00001.parquet"
    whole = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"")
    (path / "facts-00002.parquet.tmp").write_bytes(b"leftover")

    if (table, damage) == ("facts", "missing"):  # As a kill would leave it.
        assert [r.fact_id for r in read_results(path)] == ["f0", "f1", "f4"]
    else:
        with pytest.raises(RunDirectoryError, match=rf"{file.name}: is .*(damaged|not there)"):
            read_results(path)
    assert count_done(path) == (3, 5)
    with open_run(path) as run:
        assert run.done_chunks() == {0, 2}
        assert not list(path.glob("*.tmp"))
        assert not list(path.glob("*-00001.parquet"))
        write_all(run)
    assert parquet_bytes(path) == parquet_bytes(undisturbed)


@pytest.mark.parametrize("noted", [True, False])
def test_a_flipped_bit_is_reported_and_its_chunk_computed_again(
    tmp_path: Path, undisturbed: Path, noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With the digests of the files, and without them by the checksum of the page."""
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    file = path / "neurons-00001.parquet"
    data = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(0).column(3)
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    file.write_bytes(data)
    if not noted:
        forget_digests(path)
    with pytest.raises(
        RunDirectoryError, match=r"neurons-00001\.parquet: " + ("is cut" if noted else ".*CRC")
    ):
        read_results(path)
    with open_run(path) as run:
        assert run.done_chunks() == {0, 2}
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{path}: neurons-00001.parquet ")
        assert record.getMessage().endswith("; its chunk is computed again")
        write_all(run)
    assert [bits(r) for r in read_results(path)] == [bits(result_for(f)) for f in FACTS]


def test_files_without_digests_can_be_read_and_continued(tmp_path: Path, undisturbed: Path) -> None:
    """As engines before the digests wrote them."""
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    forget_digests(path)
    there = parquet_bytes(path)
    assert there["facts-00001.parquet"] != parquet_bytes(undisturbed)["facts-00001.parquet"]
    assert [bits(r) for r in read_results(path)] == [bits(result_for(f)) for f in FACTS]
    with open_run(path) as run:
        assert run.done_chunks() == {0, 1, 2}
    assert parquet_bytes(path) == there


def without(result: FactResult, columns: Collection[str]) -> FactResult:
    """As a result is read from files that lack some of the later columns."""

    there: FactResult = emptied(result, "", columns)
    return dataclasses.replace(
        there,
        candidates=emptied(result.candidates, "candidates_", columns),
        controls={
            name: emptied(drops, f"{name}_", columns) for name, drops in result.controls.items()
        },
    )


def emptied(record: Any, prefix: str, columns: Collection[str]) -> Any:
    """A record with the default in every field that a column of these names keeps."""
    fields = [f for f in dataclasses.fields(record) if f"{prefix}{f.name}" in columns]
    fresh = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in fields
    }
    return dataclasses.replace(record, **fresh)


def test_files_of_older_versions_can_be_read_and_continued(
    tmp_path: Path, undisturbed: Path
) -> None:
    """Before the columns that came later; a chunk of today may stand beside them."""
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    for chunk in (0, 1):
        file = path / f"facts-{chunk:05d}.parquet"
        file.write_bytes(to_parquet(pq.read_table(file).drop_columns(LATER)))
    expected = [result_for(f) for f in FACTS]
    expected[:4] = [without(result, LATER) for result in expected[:4]]
    assert [bits(r) for r in read_results(path)] == [bits(r) for r in expected]
    with open_run(path) as run:
        assert run.done_chunks() == {0, 1, 2}
    assert read_tables(path)["facts"].schema.equals(schema("facts"))


def test_an_objective_of_other_subsets_is_noticed() -> None:
    tables = encode([result_for(f) for f in FACTS[:2]], [0, 1], CONFIG.hash)
    assert misfit(tables) is None
    facts = tables["facts"]
    at = facts.schema.get_field_index("subset_objective")
    column = pa.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0]])
    broken = tables | {"facts": facts.set_column(at, facts.schema.field(at), column)}
    expected = "facts", "subset_objective and subset_masks are not equally long"
    assert misfit(broken) == expected
    without_one = pa.array([[1.0, 2.0, 3.0, 4.0], None])
    older = tables | {"facts": facts.set_column(at, facts.schema.field(at), without_one)}
    assert misfit(older) is None


@pytest.mark.parametrize("table", TABLES)
def test_a_file_spliced_from_two_is_computed_again(
    tmp_path: Path, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two equally laid out files whose pages all pass their checksums, one's head in the other."""
    path = tmp_path / "run"
    second, (first, at) = chunk_with(0, table), alike(table)
    head, tail = first[table], second[table]
    spliced = head[:at] + tail[at:]  # The footer has the largest value of each column.
    assert spliced not in {head, tail}
    pq.ParquetFile(io.BytesIO(spliced), page_checksum_verification=True).read()
    with open_run(path) as run:
        run.write_chunk(1, second)
    (path / f"{table}-00001.parquet").write_bytes(spliced)
    with pytest.raises(RunDirectoryError, match=f"{table}-00001.parquet: is cut short or damaged"):
        read_results(path)
    with open_run(path) as run:
        assert run.done_chunks() == set()
    assert f"{table}-00001.parquet is cut short or damaged" in caplog.text


def chunk_with(variant: int, table: str) -> dict[str, bytes]:
    """The files of a chunk, where only a figure of one table depends on the variant."""
    result, x = result_for(FACTS[2]), 1 + variant / 1024
    variants: dict[str, dict[str, Any]] = {
        "neurons": {"scores": np.array([x, 0.9, 0.8, 0.7], dtype=np.float32)},
        "components": {
            "components": (result.components[0], Component(result.neurons[[3]], x, 2.0, 2.0))
        },
        "attribution": {"convergence_delta": np.array([x, NAN, -0.0], dtype=np.float32)},
        "facts": {"full_drop": x},
    }
    results = [dataclasses.replace(result, **variants[table]), result_for(FACTS[3])]
    return chunk_files(results, [2, 3], CONFIG.hash)


def alike(table: str) -> tuple[dict[str, bytes], int]:
    """A variant of the chunk whose file is laid out as variant 0's, and where its figure ends."""
    column = {"neurons": 3, "components": 5, "attribution": 2, "facts": 14}[table]
    wanted = chunk_with(0, table)[table]
    for variant in range(1, 200):
        files = chunk_with(variant, table)
        ends = [column_end(f, column) for f in (files[table], wanted)]
        if len(files[table]) == len(wanted) and ends[0] == ends[1]:
            return files, ends[0]
    raise AssertionError("no file is laid out alike")


def column_end(file: bytes, i: int) -> int:
    """Where the pages of a column end."""
    column = pq.read_metadata(io.BytesIO(file)).row_group(0).column(i)
    starts = [column.data_page_offset, column.dictionary_page_offset or column.data_page_offset]
    return int(min(starts) + column.total_compressed_size)


def test_a_chunk_of_another_shard_is_refused_and_kept(tmp_path: Path, undisturbed: Path) -> None:
    """As from someone who copies the files of all shards into one directory."""
    path = tmp_path / "run"
    open_run(path, shard=Shard(1, 2)).close()
    for file in undisturbed.glob("*.parquet"):
        shutil.copy(file, path)
    there = parquet_bytes(path)
    for use in (open_run, lambda p, **_: read_results(p), lambda p, **_: count_done(p)):
        with pytest.raises(RunDirectoryError, match=r"facts-0000[02]\.parquet is of a chunk that"):
            use(path, shard=Shard(1, 2))
    assert parquet_bytes(path) == there


@pytest.mark.parametrize("continued", [{}, [1], [{"time": "now"}], [{"versions": []}]])
def test_a_manifest_whose_versions_are_none_is_refused(tmp_path: Path, continued: Any) -> None:
    open_run(tmp_path).close()
    manifest = read_manifest(tmp_path) | {"continued": continued}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match="damaged: continued is"):
        open_run(tmp_path)


@pytest.mark.parametrize("key", ["config_hash", "facts_per_chunk"])
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, key: str) -> None:
    open_run(tmp_path).close()
    manifest = read_manifest(tmp_path)
    manifest[key] = {"config_hash": "moon", "facts_per_chunk": 3}[key]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match=f"damaged: {key} is"):
        open_run(tmp_path)


def test_a_manifest_of_too_many_facts_takes_no_time(tmp_path: Path, undisturbed: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    manifest = read_manifest(path)
    manifest["facts"]["n"] = 10**18
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert count_done(path) == (4, 10**18)
    with pytest.raises(RunDirectoryError, match=r"facts-00002\.parquet: has 1 facts instead of 2"):
        read_results(path)


def forget_digests(path: Path) -> None:
    """Write the facts tables as engines did before digests were noted."""
    for file in path.glob("facts-*.parquet"):
        file.write_bytes(to_parquet(pq.ParquetFile(file).read().replace_schema_metadata()))


def test_chunk_must_be_whole_and_the_runs_own(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        with pytest.raises(ValueError, match="chunk 0 must hold 2 facts; got 1"):
            run.write_chunk(0, files_of(FACTS[:1]))
        with pytest.raises(ValueError, match=r"chunk must be one of range\(0, 3\); got 3"):
            run.write_chunk(3, files_of(FACTS[:2]))
        with pytest.raises(ValueError, match="files must be neurons, components"):
            run.write_chunk(0, {"facts": b""})
    with pytest.raises(ValueError, match="closed"):
        run.write_chunk(0, files_of(FACTS[:2]))
    assert not list(tmp_path.glob("*.parquet"))


def test_results_come_in_the_order_of_positions(tmp_path: Path) -> None:
    """Chunks of a window hold facts of about one length, which are seldom neighbours."""
    order = [3, 0, 4, 1, 2]
    with open_run(tmp_path) as run:
        for i in (2, 0, 1):
            mine = order[2 * i : 2 * i + 2]
            results = [result_for(FACTS[j]) for j in mine]
            run.write_chunk(i, chunk_files(results, mine, CONFIG.hash))
    assert [r.fact_id for r in iter_results(tmp_path)] == ["f0", "f1", "f2", "f3", "f4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controls": {"moon": Drops(0, 0)}}, "got 'moon'"),
        ({"scores": np.empty(3, np.float32)}, "neurons and scores must be equally long"),
        ({"n_points": np.empty(0, np.int32)}, "convergence_delta and n_points"),
        ({"pair_interactions": np.ones(5, np.float32)}, "pairs of its 4 neurons; got 5"),
        ({"subset_objective": np.zeros(3)}, "subset_objective and subset_masks must be equally"),
    ],
)
def test_result_that_cannot_be_kept_is_refused(change: dict[str, Any], message: str) -> None:
    broken = dataclasses.replace(result_for(FACTS[0]), **change)
    with pytest.raises(ValueError, match=message):
        chunk_files([broken, result_for(FACTS[1])], [0, 1], CONFIG.hash)


def test_interactions_that_are_not_those_of_the_neurons_are_seen_when_read() -> None:
    """As files without digests may have them."""
    tables = encode([result_for(f) for f in FACTS[:2]], [0, 1], CONFIG.hash)
    assert misfit(tables) is None
    facts = tables["facts"]
    at = facts.schema.get_field_index("pair_interactions")
    for other, found in (([[], None], None), ([[], [0.5] * 5], 5)):
        column = pa.array(other, facts.schema.field(at).type)
        changed = {**tables, "facts": facts.set_column(at, facts.schema.field(at), column)}
        expected = found and ("facts", f"fact 'f1' has {found} interactions of 4 neurons")
        assert misfit(changed) == expected


CHILD = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    sys.path[:0] = sys.argv[1].split(os.pathsep)
    import test_store
    mode, when, path = sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    steps = 0

    def step():
        global steps
        steps += 1
        if steps == when:
            os.kill(os.getpid(), signal.SIGKILL)

    if mode == "step":
        fsync, replace = os.fsync, Path.replace
        os.fsync = lambda fd: (step(), fsync(fd))
        Path.replace = lambda self, target: (step(), replace(self, target))
    else:
        class Slow:
            def __init__(self, file): self.file = file
            def __enter__(self): return self
            def __exit__(self, *_): pass
            def write(self, data):
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                print("half", flush=True)
                time.sleep(60)
        real = Path.open
        def slow_open(self, mode="r", **options):
            file = real(self, mode, **options)
            return Slow(file) if self.name.startswith("neurons-00001") else file
        Path.open = slow_open
    with test_store.open_run(path) as run:
        test_store.write_all(run)
    """
)


def start_child(mode: str, when: int, path: Path) -> subprocess.Popen[str]:
    here = Path(__file__)
    folders = os.pathsep.join([str(here.parent), str(here.parents[2])])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, folders, mode, str(when), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )


def assert_run_can_be_finished(path: Path, undisturbed: Path, done: set[int]) -> None:
    with open_run(path) as run:
        assert run.done_chunks() == done
        assert not list(path.glob("*.tmp"))
        write_all(run)
    assert parquet_bytes(path) == parquet_bytes(undisturbed)


# Steps of a run: the manifest is 1 to 3 (contents, rename, directory), then each chunk takes
# four contents, four renames and the directory: 4-12, 13-21, 22-30.
@pytest.mark.parametrize(
    ("step", "done"),
    [
        pytest.param(2, set(), id="before the manifest's rename"),
        pytest.param(14, {0}, id="tables half written"),
        pytest.param(17, {0}, id="all written, none renamed"),
        pytest.param(20, {0}, id="all renamed but facts"),
        pytest.param(21, {0, 1}, id="all renamed"),
    ],
)
def test_kill_loses_at_most_the_chunk_in_work(
    tmp_path: Path, undisturbed: Path, step: int, done: set[int]
) -> None:
    with start_child("step", step, tmp_path) as child:
        assert child.wait(timeout=30) == -signal.SIGKILL
    assert_run_can_be_finished(tmp_path, undisturbed, done)


def test_kill_in_the_middle_of_a_slow_write(tmp_path: Path, undisturbed: Path) -> None:
    with start_child("slow", 0, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half\n"
        with pytest.raises(RunDirectoryError, match=rf"process {child.pid}"):
            open_run(tmp_path)
        assert [r.fact_id for r in read_results(tmp_path)] == ["f0", "f1"]
        child.kill()
    assert_run_can_be_finished(tmp_path, undisturbed, {0})
