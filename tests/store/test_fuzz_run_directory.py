"""The reader of run directories on damaged files: the right results or one clear refusal."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dkn_engine as dkn
from dkn_engine.cli import main as cli
from dkn_engine.config import Config
from dkn_engine.errors import RunDirectoryError
from dkn_engine.report import html
from dkn_engine.store import count_done
from dkn_engine.store.tables import chunk_files
from tests.store.test_store import FACTS, bits, forget_digests, open_run, result_for, write_all

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


def read(path: Path) -> dkn.Results:
    done, _ = count_done(path)
    found = dkn.read_results(path)
    assert len(dkn.load_results(path, "datasets")) == len(found) == done
    return found


def resume(path: Path) -> list[dkn.FactResult]:
    with open_run(path) as directory:
        write_all(directory)
        return [r for w in range(directory.plan.n_windows) for r in directory.read_window(w)]


def outcome(path: Path, use: Callable[[Path], Sequence[dkn.FactResult]] = read) -> str:
    """``same``, or ``refused`` in one line; anything else fails the test."""
    try:
        found = use(path)
    except RunDirectoryError as error:
        message = str(error)
    else:
        assert [bits(r) for r in found] == WANTED
        return "same"
    assert str(path) in message
    assert "\n" not in message
    return "refused"


# A damage of the named file: what it changes, by name.
Damage = Callable[[Files, random.Random, str], Files]


def flip(files: Files, some: random.Random, name: str) -> Files:
    """One bit of a file."""
    data = bytearray(files[name])
    at = some.randrange(8 * len(data))
    data[at // 8] ^= 1 << at % 8
    return {name: bytes(data)}


def scribble(files: Files, some: random.Random, name: str) -> Files:
    """A few bytes of a file."""
    data = bytearray(files[name])
    at = some.randrange(len(data))
    data[at : at + 8] = some.randbytes(some.randrange(1, 9))
    return {name: bytes(data)}


def cut(files: Files, some: random.Random, name: str) -> Files:
    """A file that ends too early."""
    return {name: files[name][: some.randrange(len(files[name]))]}


def other_than(name: str, files: Files, some: random.Random) -> str:
    return some.choice(sorted(set(files) - {name}))


def swap(files: Files, some: random.Random, name: str) -> Files:
    """Two files under one another's names."""
    other = other_than(name, files, some)
    return {name: files[other], other: files[name]}


def copy(files: Files, some: random.Random, name: str) -> Files:
    """A file over another one."""
    return {name: files[other_than(name, files, some)]}


def splice(files: Files, some: random.Random, name: str) -> Files:
    """The head of a file and the tail of another of the same table, often from the same place.

    Then it may consist of whole pages.
    """
    others = [n for n in files if n != name and n.split("-")[0] == name.split("-")[0]]
    other = files[some.choice(sorted(others))]
    at = some.randrange(len(files[name]))
    tail = other[at:] if some.random() < 0.7 else other[-some.randrange(1, 900) :]
    return {name: files[name][:at] + tail}


DAMAGES = [flip, scribble, cut, swap, copy, splice]


# Times that each of a run's 13 files is damaged; the long search is for rare places in a file.
ROUNDS = [1, pytest.param(8, marks=pytest.mark.slow)]


def damages(run: Path, path: Path, damage: Damage, rounds: int) -> Iterator[Files]:
    """A copy of the run with one damage after the other, of each file; yields its files before."""
    files, some = files_in(run), random.Random(7)
    path.mkdir()
    names = [name for name in sorted(files) if damage is not splice or name != "manifest.json"]
    for name in names * rounds:
        for file in path.iterdir():
            file.unlink()
        for file_name, data in (files | damage(files, some, name)).items():
            (path / file_name).write_bytes(data)
        yield files


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_gives_the_right_results_or_one_clear_refusal(
    run: Path, tmp_path: Path, damage: Any, noted: bool, rounds: int
) -> None:
    """With digests in the files, and without them as older engines wrote them."""
    if damage is splice and not noted:
        pytest.skip("only digests tell two files whose pages are whole")
    source = tmp_path / "source"
    shutil.copytree(run, source)
    if not noted:
        forget_digests(source)
    counts = Counter(
        outcome(tmp_path / "run") for _ in damages(source, tmp_path / "run", damage, rounds)
    )
    # A flipped bit may lie where nobody looks (a name in the manifest, a statistic).
    assert counts["refused"] > (1 if damage in {flip, scribble} else 10) * rounds, counts


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_on_damaged_files_ends_right_or_is_refused(
    run: Path, tmp_path: Path, damage: Any, noted: bool, rounds: int, caplog: Any
) -> None:
    """Where the manifest is whole it goes on, and each damage that was seen is said."""
    if damage is splice and not noted:
        pytest.skip("only digests tell two files whose pages are whole")
    source, path = tmp_path / "source", tmp_path / "run"
    shutil.copytree(run, source)
    if not noted:
        forget_digests(source)
    for files in damages(source, path, damage, rounds):
        caplog.clear()
        changed = {n for n, data in files.items() if (path / n).read_bytes() != data}
        found = outcome(path, resume)
        if "manifest.json" not in changed:
            assert found == "same"
            # Of tables that do not fit together, another one of the chunk may be named.
            chunks = {n.partition("-")[2] for n in changed}
            said = {n for n in files if n.partition("-")[2] in chunks and f"{n} " in caplog.text}
            assert bool(said) == ("computed again" in caplog.text)
            assert said or not noted or not changed


@pytest.mark.parametrize("damage", DAMAGES)
def test_report_on_damaged_files_says_one_line(
    run: Path, tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def no_page(folder: Path, *_: Any, **__: Any) -> tuple[Path, bool]:
        return folder / "report.html", True

    monkeypatch.setattr(html, "write_page", no_page)
    path, codes = tmp_path / "run", Counter[int]()
    for _ in damages(run, path, damage, 1):
        code = cli.main(["report", str(path), "--quiet"])
        codes[code] += 1
        out, err = capsys.readouterr()
        assert (code == 0 and not err) or (code == 2 and not out)
        assert len(err.splitlines()) == (code == 2)
    assert set(codes) <= {0, 2}
    assert codes[2], codes


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
