"""Run directories at URLs: whole runs, stopped ones, two writers; bit-equal to local ones."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import dkn_engine as dkn
from dkn_engine.cli import main as cli
from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.facts import write_facts
from dkn_engine.models import load as models
from dkn_engine.store import as_folder, count_done, merge, place_of
from dkn_engine.store.places import LocalPlace
from dkn_engine.store.plan import Shard
from dkn_engine.store.remote import RemotePlace
from tests.run.test_pipeline import CONFIG, assert_equal
from tests.support.known_chunks import Known, computed_once
from tests.support.saved import many_facts, save_tiny
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

N = 6


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


def run(model: Any, out: Any, **more: Any) -> dkn.Results:
    return dkn.find_dkns(model, words_tokenizer(), many_facts(model, N), CONFIG, out, **more)


def tables(path: Any) -> dict[str, bytes]:
    place = place_of(path)
    return {n: place.read(n) for n in sorted(place.names()) if n.endswith(".parquet")}


@pytest.fixture(scope="module")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    run(model, path)
    return path


@pytest.fixture(scope="module")
def known() -> Known:
    return {}


@pytest.fixture
def known_chunks(known: Known) -> Iterator[None]:
    """For tests of one and the same run, whose results are not the point."""
    with computed_once(known):
        yield


class Plain(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system of files under a protocol of its own: no whole objects, no exclusive files."""

    protocol = ("plain",)


fsspec.register_implementation("plain", Plain)


class Boom(RuntimeError):
    """What ends a run in the middle."""


@pytest.fixture(params=["memory", "plain", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = f"/{uuid.uuid4()}" if request.param == "memory" else str(tmp_path)
    yield f"{request.param}://{folder}/deep/run"
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        if memory.exists(folder):
            memory.rm(folder, recursive=True)


def test_which_place_is_meant(tmp_path: Path) -> None:
    assert isinstance(place_of(tmp_path), LocalPlace)
    assert isinstance(place_of(f"file://{tmp_path}"), LocalPlace)
    assert isinstance(place_of(f"plain://{tmp_path}"), RemotePlace)
    assert isinstance(place_of("memory://x"), RemotePlace)
    assert place_of(f"file://{tmp_path}").identity == place_of(tmp_path / "a" / "..").identity
    assert place_of("memory://x/y/").identity == place_of("memory://x/y").identity
    with pytest.raises(UserError, match="'memory:/x/y' is a path made from a URL; give the URL"):
        place_of(Path("memory://x/y"))
    with pytest.raises(UserError, match="nothing://x cannot be used: Protocol not known: nothing"):
        place_of("nothing://x")


def test_a_run_at_a_url_is_bit_equal_to_a_local_one(model: Any, url: str, whole: Path) -> None:
    found = run(model, url)
    assert_equal(found, dkn.read_results(whole))
    assert tables(url) == tables(whole)
    assert {"neurons-00002.parquet", "manifest.json"} <= set(place_of(url).names())
    assert not [n for n in place_of(url).names() if n.endswith(".tmp")]
    for read in (dkn.read_results, dkn.load_results):
        assert_equal(read(url), found)
    assert list(dkn.load_results(url, "pandas")["fact_id"]) == [r.fact_id for r in found]
    assert count_done(url) == (N, N)
    assert_equal(run(model, url), found)  # All is there.
    with pytest.raises(RunDirectoryError, match="run belongs to another configuration: seed"):
        dkn.find_dkns(model, words_tokenizer(), many_facts(model, N), replace(CONFIG, seed=1), url)


@pytest.mark.usefixtures("known_chunks")
@pytest.mark.parametrize("url", ["memory", "plain"], indirect=True)
@pytest.mark.parametrize("step", range(2, 13, 2))
def test_a_run_that_fails_at_any_write_goes_on(
    model: Any, url: str, whole: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write is the lock, the second the manifest, then four a chunk."""
    kind = MemoryFileSystem if url.startswith("memory") else Plain
    n, put = 0, kind.pipe_file

    def failing(self: Any, path: str, data: bytes, **mode: str) -> None:
        nonlocal n
        if "mode" not in mode or kind is MemoryFileSystem:  # Plain files are asked for it in vain.
            n += 1
        if n == step:
            if kind is Plain and step > 2:  # It shows half of what is written.
                put(self, path, data[: len(data) // 2], **mode)
            raise Boom
        put(self, path, data, **mode)

    monkeypatch.setattr(kind, "pipe_file", failing)
    with pytest.raises(RunDirectoryError, match="Boom"):
        run(model, url)
    monkeypatch.undo()
    run(model, url)
    assert tables(url) == tables(whole)


@pytest.mark.usefixtures("known_chunks")
def test_two_writers_are_refused(model: Any, url: str, whole: Path) -> None:
    results = dkn.iter_dkns(model, words_tokenizer(), many_facts(model, N), CONFIG, url)
    lock = place_of(url).lock()
    with pytest.raises(RunDirectoryError, match=r"is being written by another run \(process \d+"):
        next(results)
    lock.release()
    lock.release()
    run(model, url)
    assert tables(url) == tables(whole)


@pytest.mark.usefixtures("known_chunks")
@pytest.mark.parametrize("url", ["memory", "plain"], indirect=True)
def test_a_lock_that_was_left_says_how_to_remove_it(model: Any, url: str, whole: Path) -> None:
    place_of(url).lock()  # Its process is killed.
    with pytest.raises(RunDirectoryError) as caught:
        run(model, url)
    _, _, name = str(caught.value).partition("if it was killed, remove ")
    assert name == f"{url}/.lock"
    fsspec.url_to_fs(name)[0].rm_file(fsspec.url_to_fs(name)[1])
    run(model, url)
    assert tables(url) == tables(whole)


@pytest.mark.usefixtures("known_chunks")
@pytest.mark.parametrize("url", ["memory", "plain"], indirect=True)
def test_a_lock_that_another_run_took_ends_this_one_before_it_writes(model: Any, url: str) -> None:
    taken: list[Any] = []

    def take(done: int, total: int) -> None:
        if not taken:
            place_of(url).remove(".lock")
            taken.append(place_of(url).lock())

    results = dkn.iter_dkns(
        model, words_tokenizer(), many_facts(model, N), CONFIG, url, progress=take
    )
    with pytest.raises(RunDirectoryError, match="is being written by another run"):
        list(results)
    assert count_done(url) == (2, N)
    assert ".lock" in place_of(url).names()  # The other's.


@pytest.mark.parametrize("url", ["memory", "plain"], indirect=True)
def test_a_file_system_that_cannot_create_exclusively_is_asked_first(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, _ = fsspec.url_to_fs(url)
    pipe = type(system).pipe_file

    def without_mode(self: Any, path: str, value: bytes) -> None:
        pipe(self, path, value)

    monkeypatch.setattr(type(system), "pipe_file", without_mode)
    lock = place_of(url).lock()
    with pytest.raises(RunDirectoryError, match="another run"):
        place_of(url).lock()
    lock.release()
    place_of(url).lock().release()


def test_what_the_file_system_raises_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Object stores raise what their clients raise."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Boom("no\ncredentials")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(RunDirectoryError, match=r"memory://x/\.lock: no credentials"):
        place_of("memory://x").lock()
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(RunDirectoryError, match=r"memory://x/manifest\.json: no credentials"):
        dkn.read_results("memory://x")
    monkeypatch.undo()
    with pytest.raises(RunDirectoryError, match="memory://x is not a run directory"):
        dkn.read_results("memory://x")


@pytest.mark.usefixtures("known_chunks")
def test_shards_at_urls_are_merged(model: Any, url: str, whole: Path) -> None:
    shards = [f"{url}-{i}" for i in range(2)]
    for i, shard in enumerate(shards):
        run(model, shard, shard=Shard(i, 2))
    assert merge(url, shards) == N
    assert tables(url) == tables(whole)
    with pytest.raises(UserError, match="is given twice"):
        merge(url, [*shards, f"{shards[0]}/"])


@pytest.fixture(scope="module")
def inputs(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Known]:
    """A model and two facts in files, and the results of their chunks once they are known."""
    folder = tmp_path_factory.mktemp("inputs")
    write_facts(folder / "facts.jsonl", many_facts(model, 2))
    save_tiny(folder / "model")
    return folder, {}


def test_the_program_finds_reports_and_informs_at_a_url(
    inputs: tuple[Path, Known], tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, known = inputs
    find = ["find", "--model", str(folder / "model"), "--device", "cpu", "--quiet"]
    find += ["--facts", str(folder / "facts.jsonl"), "--set", "filter.n_random=2"]
    with models.quiet(), computed_once(known):
        assert cli.main([*find, "--out", url]) == 0
    assert {"summary.md", "summary.json"} <= set(place_of(url).names())
    assert cli.main(["report", url, "--quiet", "--fact-figures", "0"]) == 0
    assert url.removeprefix("file://") in capsys.readouterr().out.replace("\n", "")
    assert "demo" not in place_of(url).read("report.html").decode()
    assert "figures" in place_of(url).names()
    assert cli.main(["info", url, "--json"]) == 0
    assert '"facts_done": "2 of 2"' in capsys.readouterr().out
    assert not (tmp_path / "memory:").exists()


def test_commands_that_need_a_folder_refuse_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["analyze", "all", "--out", "s3://bucket/x"]) == 2
    _, err = capsys.readouterr()
    assert "--out: must be a folder of this machine; got 's3://bucket/x'" in err
    assert len(err.splitlines()) == 1


def test_a_folder_for_what_can_write_nowhere_else(url: str) -> None:
    place = place_of(url)
    place.lock().release()
    place.write({"kept": b"1", "changed": b"1"})
    with as_folder(url, "kept", "changed") as folder:
        assert (folder / "kept").read_bytes() == b"1"
        (folder / "changed").write_bytes(b"2")
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_bytes(b"3")
    assert [place.read(n) for n in ("kept", "changed", "deep/new")] == [b"1", b"2", b"3"]
    assert "deep" in place.names()
