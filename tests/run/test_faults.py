"""Faults for real: kills at any point, full and read-only disks, damage, two runs, other settings.

Each is one clear message and exit code 2, and what was there stays as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.cli import main as cli
from dkn_engine.facts import write_facts
from dkn_engine.models import load as models
from tests.run.test_pipeline import CONFIG, parquet
from tests.support import forked
from tests.support.saved import many_facts, save_tiny
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def kill_harness_main(folder: str, kills: str) -> None:
    from tests.support import kill_harness  # has a model of its own

    kill_harness.main(folder, kills)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a child a run")
@pytest.mark.parametrize("kills", [45, pytest.param(300, marks=pytest.mark.slow)])
def test_a_run_killed_anywhere_any_number_of_times_ends_bit_equal(
    tmp_path: Path, kills: int
) -> None:
    """At each step of a write at least once, also of a run that was killed before; a third of the
    kills come at any time."""
    done = forked.run(kill_harness_main, str(tmp_path), str(kills), timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) >= kills


# --- the program, on a model and facts in files ---


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and facts."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    save_tiny(folder / "other", seed=1)
    facts = many_facts(tiny("llama", torch.float32), 8)
    write_facts(folder / "facts.jsonl", facts)
    write_facts(folder / "others.jsonl", facts[::-1])
    return folder


@pytest.fixture(autouse=True)
def _quiet_loading() -> Iterator[None]:
    with models.quiet():
        yield


def find(inputs: Path, out: Path, *more: str, model: str = "model", facts: str = "facts") -> int:
    return cli.main(
        [
            *["find", "--model", str(inputs / model), "--device", "cpu", "--quiet"],
            *["--facts", str(inputs / f"{facts}.jsonl"), "--out", str(out)],
            *["--set", "facts_per_chunk=2", "--set", "filter.n_random=2", "--no-report", *more],
        ]
    )


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line that is said."""
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("dkn-engine: error: ")
    return line.removeprefix("dkn-engine: error: ")


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert find(inputs, out) == 0
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".lock")}


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory with some mount options."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    inputs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "size=80k") as disk:
        line = refused(capsys, find(inputs, disk / "run"))
        assert line.endswith(": No space left on device")
        assert str(disk / "run") in line
        there = files(disk / "run")
        done = dkn.read_results(disk / "run")
        assert 0 < len(done) < 8
        assert not [name for name in there if name.endswith(".tmp")]
        refused(capsys, find(inputs, disk / "run"))
        assert files(disk / "run") == there
        remount(disk, "size=4m")
        assert find(inputs, disk / "run") == 0
        assert parquet(disk / "run") == parquet(whole)


def test_a_file_that_may_not_grow_is_said(
    inputs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quota for users who cannot mount: no file may be longer than a facts table."""
    shutil.copytree(whole, tmp_path / "run")
    for file in (tmp_path / "run").glob("*-00001.parquet"):
        file.unlink()
    there = files(tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        code = find(inputs, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused(capsys, code).endswith("-00001.parquet.tmp: File too large")
    assert files(tmp_path / "run") == there
    assert find(inputs, tmp_path / "run") == 0
    assert parquet(tmp_path / "run") == parquet(whole)


def test_a_disk_that_cannot_be_written_is_said(
    inputs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        shutil.copytree(whole, disk / "run")
        (disk / "run" / "facts-00002.parquet").unlink()
        there = files(disk / "run")
        remount(disk, "ro")
        for out in (disk / "run", disk / "new"):
            line = refused(capsys, find(inputs, out))
            assert line == f"run directory {out} cannot be written: {os.strerror(errno.EROFS)}"
        assert files(disk / "run") == there


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_a_directory_without_permission_is_said() -> None:
    model = tiny("llama", torch.float32)
    facts = many_facts(model, 2)
    dkn.find_dkns(model, words_tokenizer(), facts, CONFIG)  # Imports what nobody may not read.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        with (
            as_nobody(),
            pytest.raises(dkn.RunDirectoryError, match="cannot be written: Permission denied"),
        ):
            dkn.find_dkns(model, words_tokenizer(), facts, CONFIG, folder / "run")
        assert list(folder.iterdir()) == []
        folder.chmod(0o755)


@pytest.mark.parametrize("table", ["neurons", "facts"])
def test_a_truncated_shard_is_said_and_computed_again(
    inputs: Path, whole: Path, tmp_path: Path, capfd: Any, table: str, caplog: Any
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / f"{table}-00001.parquet"
    file.write_bytes(file.read_bytes()[:-7])
    assert find(inputs, tmp_path / "run") == 0
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path / 'run'}: {file.name} is cut short or damaged; its chunk is computed again"
    )
    assert parquet(tmp_path / "run") == parquet(whole)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" + data,
     lambda data: data.replace(b'"facts_per_chunk": 2', b'"facts_per_chunk": "two"')],
    ids=["cut", "empty", "not text", "wrong kind"],
)  # fmt: skip
def test_a_corrupt_manifest_is_said(
    inputs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_bytes(damage(manifest.read_bytes()))
    there = files(tmp_path / "run")
    assert str(manifest) in refused(capsys, find(inputs, tmp_path / "run"))
    assert files(tmp_path / "run") == there


OWNER = """
import sys
from pathlib import Path
from dkn_engine.files.locks import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("mine", flush=True)
sys.stdin.read()
"""


def test_two_processes_on_one_directory(
    inputs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "facts-00002.parquet").unlink()
    there = files(tmp_path / "run")
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        line = refused(capsys, find(inputs, tmp_path / "run"))
        assert f"is being written by another run (process {owner.pid})" in line
        assert files(tmp_path / "run") == there
        owner.kill()
    assert find(inputs, tmp_path / "run") == 0
    assert parquet(tmp_path / "run") == parquet(whole)


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        (("--set", "seed=1"), {}, "configuration: seed was 0, is now 1"),
        (("--where", "known>=0.2"), {}, "filter.min_probability was 0.05, is now 0.2"),
        ((), {"model": "other"}, "belongs to another model: was "),
        ((), {"facts": "others"}, "facts: as many (8), but not the same"),
        (("--limit", "7"), {}, "facts: were 8, are now 7"),
        (("--relation", "r1"), {}, "facts: were 8, are now 3"),
    ],
)
def test_another_run_on_the_same_directory(
    inputs: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    options: dict[str, str],
    message: str,
) -> None:
    there = files(whole)
    assert message in refused(capsys, find(inputs, whole, *more, **options))
    assert files(whole) == there
