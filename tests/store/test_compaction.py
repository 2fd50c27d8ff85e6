"""Chunks of a finished run in few files: equal when read, safe to kill, also beside a reader."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import dkn_engine as dkn
from dkn_engine.config import Config
from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.store import Snapshot, count_done, merge, place_of, read_manifest, read_tables
from dkn_engine.store.directory import RunDirectory
from dkn_engine.store.places import LocalPlace
from dkn_engine.store.plan import Shard
from dkn_engine.store.tables import chunk_files
from dkn_engine.types import Fact
from tests.store import test_store
from tests.store.test_format_2 import OLD
from tests.store.test_store import CONFIG, bits, parquet_bytes, result_for

# Four windows of three chunks of two facts, whose facts are not neighbours; the last window is one
# chunk of one fact. So there is a part before, in the middle and at the end, and a short one, with
# chunks before, in the middle and at the end of a part.
FACTS = [Fact(f"f{i}", f"Prompt {i} is", "so") for i in range(19)]
CHUNKS = 3
WINDOW = 2 * CHUNKS
PER_FILE = WINDOW  # facts: a window a file
NAMES = ("00000-00002", "00003-00005", "00006-00008", "00009-00009")


def open_run(path: Any, **changes: Any) -> RunDirectory:
    return test_store.open_run(path, **{"facts": FACTS, "chunks_per_window": CHUNKS} | changes)


def write_missing(run: RunDirectory, facts: list[Fact] = FACTS, n: int = 10**9) -> None:
    """Chunks that are not there; each has facts from all over its window."""
    for chunk in sorted(set(run.plan.chunks) - run.done_chunks())[:n]:
        window, i = divmod(chunk, CHUNKS)
        start = window * WINDOW
        chunks = -(-min(WINDOW, len(facts) - start) // 2)
        positions = [start + j for j in range(min(WINDOW, len(facts) - start)) if j % chunks == i]
        results = [result_for(facts[j]) for j in positions]
        run.write_chunk(chunk, chunk_files(results, positions, CONFIG.hash))


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loose")
    with open_run(path) as run:
        write_missing(run)
    return path


@pytest.fixture(scope="module")
def dense(loose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "run"
    shutil.copytree(loose, path)
    compact(path)
    return path


def compact(path: Any) -> None:
    with open_run(path) as run:
        run.compact(PER_FILE)


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@pytest.fixture(scope="module")
def wanted(loose: Path) -> list[Any]:
    found = [bits(r) for r in dkn.read_results(loose)]
    assert found == [bits(result_for(fact)) for fact in FACTS]
    return found


def read(path: Any) -> list[Any]:
    return [bits(r) for r in dkn.load_results(path)]


def test_a_compacted_run_has_few_files_and_is_read_bit_equal(
    loose: Path, dense: Path, wanted: list[Any]
) -> None:
    names = {f"{table}-{part}.parquet" for table in read_tables(loose) for part in NAMES}
    assert set(parquet_bytes(dense)) == names
    assert read(dense) == wanted
    assert count_done(dense) == (len(FACTS), len(FACTS))
    for name, table in read_tables(loose).items():
        assert repr(read_tables(dense)[name].to_pylist()) == repr(table.to_pylist())
    assert dkn.load_results(dense, "datasets", table="neurons").num_rows == 5 * len(FACTS)
    manifests = [read_manifest(path) for path in (loose, dense)]
    assert manifests[1] == manifests[0] | {"format_version": 3, "chunks_per_file": CHUNKS}


def test_a_compacted_run_is_resumed_with_nothing_to_do(dense: Path, wanted: list[Any]) -> None:
    before = parquet_bytes(dense)
    with open_run(dense) as run:
        assert run.done_chunks() == set(range(10))
        windows = [bits(r) for w in range(run.plan.n_windows) for r in run.read_window(w)]
        assert windows == wanted
        run.compact(PER_FILE)
    assert parquet_bytes(dense) == before
    with pytest.raises(RunDirectoryError, match="belongs to another configuration: seed"):
        open_run(dense, config=Config(facts_per_chunk=2, seed=1))


def test_a_run_of_format_2_is_compacted(tmp_path: Path) -> None:
    path = copied(OLD, tmp_path / "run")
    with RunDirectory.adopt(path, read_manifest(path)) as run:
        run.compact()
    assert sorted(parquet_bytes(path))[1] == "components-00000-00002.parquet"
    assert read(path) == read(OLD)


class Killed(BaseException):
    """What no handler of the code under test expects, as nothing does a kill."""


def killed_at(step: int, patch: pytest.MonkeyPatch, work: Callable[[], None]) -> bool:
    """Whether the work was ended before a change of the disk, counted from 1."""
    n = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(what: Any, *more: Any, **options: Any) -> Any:
            nonlocal n
            # The lock's file goes as the system drops the lock of a process that was killed.
            if not isinstance(what, Path) or not what.name.startswith(".lock"):
                n += 1
                if n >= step:
                    raise Killed
            return real(what, *more, **options)

        return act

    with patch.context() as change:
        change.setattr(os, "fsync", counted(os.fsync))
        change.setattr(Path, "replace", counted(Path.replace))
        change.setattr(Path, "unlink", counted(Path.unlink))
        try:
            work()
        except Killed:
            return True
    return False


# The manifest takes 3 changes, a part 9 and then 12 removals, but the last part 9 and 4.
@pytest.mark.parametrize("step", [1, 2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 18, 24, 25, 34, 45, 75, 79])
def test_a_kill_at_any_change_leaves_a_readable_run(
    loose: Path,
    dense: Path,
    wanted: list[Any],
    tmp_path: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = copied(loose, tmp_path / "run")
    assert killed_at(step, monkeypatch, lambda: compact(path))
    assert read(path) == wanted
    assert count_done(path) == (len(FACTS), len(FACTS))
    compact(path)
    assert {f.name: f.read_bytes() for f in path.iterdir() if f.suffix == ".parquet"} == (
        parquet_bytes(dense)
    )
    assert not list(path.glob("*.tmp"))


def test_all_changes_are_counted(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(loose, tmp_path / "run")
    assert not killed_at(3 + 3 * 21 + 13 + 1, monkeypatch, lambda: compact(path))


def test_who_reads_meanwhile_gets_the_same_facts(
    loose: Path, wanted: list[Any], tmp_path: Path
) -> None:
    path = copied(loose, tmp_path / "run")
    snapshot = Snapshot(path)
    results = iter(snapshot)
    found = [bits(next(results)) for _ in range(3)]
    compact(path)
    assert found + [bits(r) for r in results] == wanted
    assert [bits(r) for r in snapshot] == wanted


def test_a_snapshot_of_an_unfinished_run_stays_what_it_was(
    loose: Path, wanted: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with open_run(path) as run:
        write_missing(run, n=4)
        snapshot = Snapshot(path)
        before = [bits(r) for r in snapshot]
        write_missing(run)
        run.compact(PER_FILE)
    assert WINDOW < len(before) < len(wanted)
    assert [bits(r) for r in snapshot] == before


@pytest.mark.parametrize("table", ["facts", "neurons", "attribution"])
def test_a_chunk_that_moves_while_it_is_read_is_read_where_it_is(
    loose: Path, wanted: list[Any], tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read_file = copied(loose, tmp_path / "run"), LocalPlace.read

    def moving(place: LocalPlace, name: str) -> bytes:
        if name == f"{table}-00004.parquet":
            monkeypatch.undo()
            compact(path)
        return read_file(place, name)

    monkeypatch.setattr(LocalPlace, "read", moving)
    assert read(path) == wanted
    assert len(parquet_bytes(path)) == 4 * len(NAMES)


@pytest.mark.parametrize("first", ["00000", "00009"])
def test_a_list_of_files_that_is_made_while_chunks_move_is_made_again(
    dense: Path, wanted: list[Any], tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lack the files that are new and those that are gone."""
    names = LocalPlace.names

    def halfway(place: LocalPlace) -> list[str]:
        monkeypatch.undo()
        return [name for name in names(place) if f"-{first}-" not in name]

    monkeypatch.setattr(LocalPlace, "names", halfway)
    assert read(dense) == wanted


@pytest.mark.parametrize("table", ["neurons", "facts"])
def test_a_damaged_part_is_computed_and_compacted_again(
    dense: Path,
    wanted: list[Any],
    tmp_path: Path,
    table: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = copied(dense, tmp_path / "run")
    file = path / f"{table}-00003-00005.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RunDirectoryError, match=rf"{file.name}: is cut short or damaged"):
        read(path)
    assert count_done(path) == (13, 19)
    with open_run(path) as run:
        assert f"{file.name} is cut short or damaged; its chunk is computed again" in caplog.text
        assert run.done_chunks() == set(range(10)) - set(range(3, 6))
        with pytest.raises(UserError, match="cannot be compacted before all chunks"):
            run.compact()
        write_missing(run)
        assert read(path) == wanted  # Of both kinds of files.
        run.compact(PER_FILE)
    assert parquet_bytes(path) == parquet_bytes(dense)


def test_half_a_part_beside_its_chunks_is_of_no_account(
    loose: Path, dense: Path, wanted: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a kill leaves it on a file system that shows half of what is written."""
    path = copied(loose, tmp_path / "run")
    shutil.copy(dense / "manifest.json", path)
    for table in ("neurons", "components", "attribution", "facts"):
        name = f"{table}-00003-00005.parquet"
        (path / name).write_bytes((dense / name).read_bytes()[:1000])
    assert read(path) == wanted
    with open_run(path) as run:
        assert run.done_chunks() == set(range(10))
    assert not caplog.text
    assert parquet_bytes(path) == parquet_bytes(loose)


def test_a_part_of_another_run_is_refused(dense: Path, loose: Path, tmp_path: Path) -> None:
    path = copied(loose, tmp_path / "run")
    shutil.copy(dense / "facts-00003-00005.parquet", path)
    for use in (read, count_done, compact):
        with pytest.raises(RunDirectoryError, match=r"facts-00003-00005\.parquet is of a chunk"):
            use(path)


def test_merging_a_compacted_run_gives_its_chunks_back(
    loose: Path, dense: Path, tmp_path: Path
) -> None:
    assert merge(tmp_path / "out", [dense]) == len(FACTS)
    assert parquet_bytes(tmp_path / "out") == parquet_bytes(loose)
    assert read_manifest(tmp_path / "out") == read_manifest(loose)


def test_shards_are_merged_into_few_files(loose: Path, wanted: list[Any], tmp_path: Path) -> None:
    shards = [tmp_path / str(i) for i in range(2)]
    for i, shard in enumerate(shards):
        with open_run(shard, shard=Shard(i, 2)) as run:
            write_missing(run)
            run.finish()
            with pytest.raises(UserError, match=r"cannot be compacted before .* merge its shards"):
                run.compact()
    for _ in range(2):  # It can be called again.
        assert merge(tmp_path / "out", shards, compact=True) == len(FACTS)
        assert len(parquet_bytes(tmp_path / "out")) == 4
        assert read(tmp_path / "out") == wanted


@pytest.fixture
def url() -> Iterator[str]:
    folder = f"/{uuid.uuid4()}"
    yield f"memory:/{folder}/run"
    memory = fsspec.filesystem("memory")
    if memory.exists(folder):
        memory.rm(folder, recursive=True)


def test_a_run_at_a_url_is_compacted(loose: Path, dense: Path, wanted: list[Any], url: str) -> None:
    assert merge(url, [loose]) == len(FACTS)
    snapshot = Snapshot(url)
    compact(url)
    place = place_of(url)
    there = {n: place.read(n) for n in place.names() if n.endswith(".parquet")}
    assert there == parquet_bytes(dense)
    assert read(url) == [bits(r) for r in snapshot] == wanted
    assert count_done(url) == (len(FACTS), len(FACTS))


def test_a_run_of_many_chunks_is_compacted_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here five are many."""
    many = 5
    for n, files in ((many - 1, 4 * (many - 1)), (many, 4)):
        facts = [Fact(f"f{i}", f"Prompt {i} is", "so") for i in range(2 * n)]
        path = tmp_path / str(n)
        with open_run(path, facts=facts) as run:
            write_missing(run, facts, n - 1)
            run.finish(many)
            assert len(parquet_bytes(path)) == 4 * (n - 1)
            write_missing(run, facts)
            if n == many:  # A disk that is full is no reason to fail.
                with monkeypatch.context() as patch:
                    patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
                    run.finish(many)
                assert "stays in many files: [Errno 28] full" in caplog.text
                assert len(read(path)) == 2 * n
            run.finish(many)
        assert len(parquet_bytes(path)) == files
        assert [r.fact_id for r in dkn.read_results(path)] == [f.id for f in facts]
