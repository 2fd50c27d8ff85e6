"""The reader of run directories on damaged files: the right results or one clear refusal."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dkn_engine as dkn
from dkn_engine.config import Config
from dkn_engine.errors import RunDirectoryError
from dkn_engine.store.tables import chunk_files
from tests.test_store import FACTS, bits, open_run, result_for, write_all

WANTED = [bits(result_for(fact)) for fact in FACTS]
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    with open_run(path) as directory:
        write_all(directory)
    return path


def files_in(run: Path) -> Files:
    return {f.name: f.read_bytes() for f in run.iterdir() if f.suffix in {".parquet", ".json"}}


def outcome(path: Path) -> str:
    """``same``, or ``refused`` in one line; anything else fails the test."""
    try:
        found = dkn.load_results(path)
    except RunDirectoryError as error:
        message = str(error)
    else:
        assert [bits(r) for r in found] == WANTED
        return "same"
    assert str(path) in message
    assert "\n" not in message
    return "refused"


def flip(files: Files, some: random.Random) -> Files:
    """One bit of one file."""
    name = some.choice(sorted(files))
    data = bytearray(files[name])
    at = some.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8
    return {name: bytes(data)}


def scribble(files: Files, some: random.Random) -> Files:
    """A few bytes of one file."""
    name = some.choice(sorted(files))
    data = bytearray(files[name])
    at = some.randrange(len(data))
    data[at : at + 8] = some.randbytes(some.randrange(1, 9))
    return {name: bytes(data)}


def cut(files: Files, some: random.Random) -> Files:
    """A file that ends too early."""
    name = some.choice(sorted(files))
    return {name: files[name][: some.randrange(len(files[name]))]}


def swap(files: Files, some: random.Random) -> Files:
    """Two files under one another's names."""
    one, other = some.sample(sorted(files), 2)
    return {one: files[other], other: files[one]}


def copy(files: Files, some: random.Random) -> Files:
    """A file over another one."""
    one, other = some.sample(sorted(files), 2)
    return {one: files[other]}


@pytest.mark.parametrize("damage", [flip, scribble, cut, swap, copy])
def test_damage_gives_the_right_results_or_one_clear_refusal(
    run: Path, tmp_path: Path, damage: Callable[[Files, random.Random], Files]
) -> None:
    files, some, counts = files_in(run), random.Random(7), Counter[str]()
    path = tmp_path / "run"
    shutil.copytree(run, path)
    for _ in range(150):
        damaged = damage(files, some)
        for name, data in damaged.items():
            (path / name).write_bytes(data)
        counts[outcome(path)] += 1
        for name in damaged:
            (path / name).write_bytes(files[name])
    # A flipped bit may lie where nobody looks (a name in the manifest, a statistic).
    assert counts["refused"] > (20 if damage in {flip, scribble} else 100), counts
    assert outcome(path) == "same"


def test_chunks_of_another_run_are_refused(run: Path, tmp_path: Path) -> None:
    """Its facts have other ids, but its tables fit each other."""
    other, path = tmp_path / "other", tmp_path / "run"
    shutil.copytree(run, path)
    config = Config(facts_per_chunk=2, seed=5)
    with open_run(other, config=config) as directory:
        for i in directory.plan.chunks:
            facts = FACTS[2 * i : 2 * i + 2]
            positions = range(2 * i, 2 * i + len(facts))
            results = [result_for(f) for f in facts]
            directory.write_chunk(i, chunk_files(results, positions, config.hash))
    for file in other.glob("*-00001.parquet"):
        shutil.copy(file, path / file.name)
    with pytest.raises(
        RunDirectoryError, match=r"facts-00001\.parquet: belongs to the configuration"
    ):
        dkn.load_results(path)


@pytest.mark.parametrize("table", ["neurons", "components", "attribution"])
def test_a_chunk_that_lacks_a_table_is_refused(run: Path, tmp_path: Path, table: str) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / f"{table}-00001.parquet").unlink()
    with pytest.raises(RunDirectoryError, match=rf"{table}-00001\.parquet: is not there"):
        dkn.load_results(path)


def test_a_chunk_that_is_not_there_is_left_out(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    for file in path.glob("*-00001.parquet"):
        file.unlink()
    assert [bits(r) for r in dkn.load_results(path)] == WANTED[:2] + WANTED[4:]


def test_files_of_other_names_are_passed_over(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    for name in ("facts-x.parquet", "facts-00009.parquet.tmp", "summary.json", "facts-.parquet"):
        (path / name).write_bytes(b"not a table")
    assert outcome(path) == "same"


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", nested(100_000), "\ufeff{}", '{"format": NaN}', "\x00" * 40]
)
def test_manifests_that_are_none_are_refused(run: Path, tmp_path: Path, text: Any) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    (path / "manifest.json").write_text(text, encoding="utf-8")
    assert outcome(path) == "refused"
