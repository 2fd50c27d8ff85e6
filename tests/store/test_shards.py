"""Shards of a run on several machines, and putting them together: equal to one undisturbed run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.cli import main as cli
from dkn_engine.store import count_done, merge, read_manifest
from dkn_engine.store.directory import MANY_CHUNKS
from dkn_engine.store.plan import Shard
from tests.run.test_pipeline import CHEAP, assert_equal, parquet
from tests.support.saved import many_facts
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

N = 23  # in two windows of 16 chunks and 7
CONFIG = dataclasses.replace(CHEAP, facts_per_chunk=1)
MODEL = "llama"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole``, and its shards ``0`` to ``2``."""
    folder = tmp_path_factory.mktemp("runs")
    model, tokenizer = tiny(MODEL, torch.float32), words_tokenizer()
    facts = many_facts(model, N)
    dkn.find_dkns(model, tokenizer, facts, CONFIG, folder / "whole")
    for i in range(3):
        seen: list[tuple[int, int]] = []
        found = dkn.find_dkns(
            model,
            tokenizer,
            facts,
            CONFIG,
            folder / str(i),
            shard=Shard(i, 3),
            progress=lambda *x, seen=seen: seen.append(x),
        )
        positions = [int(r.fact_id[1:]) for r in found]
        assert positions == sorted(positions)
        assert count_done(folder / str(i)) == (len(found), len(found)) == seen[-1]
    return folder


def parts(runs: Path, *which: int) -> list[Path]:
    return [runs / str(i) for i in which or (0, 1, 2)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merged_shards_equal_the_undisturbed_run(
    runs: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    assert merge(tmp_path / "out", parts(runs, *order)) == N
    assert parquet(tmp_path / "out") == parquet(runs / "whole")
    manifests = [read_manifest(p) for p in (tmp_path / "out", runs / "whole")]
    for manifest in manifests:
        manifest.pop("created")
    assert manifests[0] == manifests[1]
    # The original command finds everything done.
    model = tiny(MODEL, torch.float32)
    found = dkn.find_dkns(model, words_tokenizer(), many_facts(model, N), CONFIG, tmp_path / "out")
    assert [r.fact_id for r in found] == [f"f{i}" for i in range(N)]
    assert parquet(tmp_path / "out") == parquet(runs / "whole")


def test_a_merge_that_was_stopped_goes_on(runs: Path, tmp_path: Path) -> None:
    merge(tmp_path / "out", parts(runs))
    for name in ("facts-00003.parquet", "neurons-00005.parquet"):
        (tmp_path / "out" / name).unlink()
    merge(tmp_path / "out", parts(runs))
    assert parquet(tmp_path / "out") == parquet(runs / "whole")


def test_versions_that_differ_are_listed(runs: Path, tmp_path: Path) -> None:
    other = copied(runs / "1", tmp_path / "other")
    manifest = read_manifest(other)
    manifest["versions"] = {"torch": "1.0"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    merge(tmp_path / "out", [runs / "0", other, runs / "2"])
    found = read_manifest(tmp_path / "out")
    assert found["versions"] == read_manifest(runs / "0")["versions"]
    assert [entry["versions"] for entry in found["continued"]] == [{"torch": "1.0"}]


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def refuses(out: Path, directories: list[Path], message: str) -> None:
    with pytest.raises(dkn.UserError, match=message):
        merge(out, directories)
    assert not out.exists()


def test_what_is_not_the_whole_of_one_run_is_refused(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refuses(out, [], "needs the directories of shards")
    refuses(out, parts(runs, 0, 2), "8 of 23 chunks are in none of the directories, the first is 1")
    refuses(out, parts(runs, 0, 1, 2, 1), "1 is given twice")
    refuses(out, [tmp_path / "nothing"], "is not a run directory")
    refuses(out, [*parts(runs), runs / "whole"], r"chunk 0 is in .*0 and in .*whole")
    unfinished = copied(runs / "1", tmp_path / "unfinished")
    (unfinished / "facts-00004.parquet").unlink()
    refuses(out, [*parts(runs, 0, 2), unfinished], "1 of 23 chunks .* the first is 4")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("config", "seed"), 1, r"configuration: seed was 1, is now 0"),
        (("model", "fingerprint"), "moon", r"model: was .*\(moon\)"),
        (("facts", "digest"), "moon", r"facts: as many \(23\), but not the same"),
        (("chunks_per_window",), 3, "chunks_per_window was 3, is now 16"),
    ],
)
def test_shards_of_another_run_are_refused(
    runs: Path, tmp_path: Path, keys: tuple[str, ...], value: Any, message: str
) -> None:
    other = copied(runs / "1", tmp_path / "other")
    manifest = table = read_manifest(other)
    for key in keys[:-1]:
        table = table[key]
    table[keys[-1]] = value
    (other / "manifest.json").write_text(json.dumps(manifest))
    refuses(tmp_path / "out", [runs / "0", other, runs / "2"], message)


def test_a_chunk_of_other_facts_is_refused(runs: Path, tmp_path: Path) -> None:
    """As from a tokenizer that sorts the facts of a window another way."""
    other = copied(runs / "1", tmp_path / "other")
    for table in ("neurons", "components", "attribution", "facts"):
        shutil.copy(runs / "0" / f"{table}-00000.parquet", other / f"{table}-00001.parquet")
    refuses(
        tmp_path / "out", [runs / "0", other, runs / "2"], "do not hold each of their facts once"
    )


def test_a_shard_does_not_continue_another(runs: Path, tmp_path: Path) -> None:
    out = copied(runs / "1", tmp_path / "one")
    before = parquet(out)
    model = tiny(MODEL, torch.float32)
    for shard, now in ((Shard(2, 3), "2/3"), (Shard(), "0/1")):
        with pytest.raises(dkn.RunDirectoryError, match=f"another shard: was 1/3, is now {now}"):
            dkn.find_dkns(model, words_tokenizer(), many_facts(model, N), CONFIG, out, shard=shard)
    assert parquet(out) == before


def test_a_run_of_many_chunks_ends_in_few_files(tmp_path: Path) -> None:
    model, tokenizer = tiny(MODEL, torch.float32), words_tokenizer()
    facts = many_facts(model, MANY_CHUNKS)
    results = dkn.iter_dkns(model, tokenizer, facts, CONFIG, tmp_path)
    found = [next(results)]
    assert len(parquet(tmp_path)) < 4 * MANY_CHUNKS
    found += results
    assert len(parquet(tmp_path)) == 4
    assert_equal(found, dkn.find_dkns(model, tokenizer, facts, CONFIG))
    assert_equal(found, dkn.find_dkns(model, tokenizer, facts, CONFIG, tmp_path))


def test_program(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(p) for p in parts(runs)]
    assert cli.main(["merge", str(tmp_path / "out"), *arguments]) == 0
    out, err = capsys.readouterr()
    assert f" of {N} " in out
    assert err.startswith("[1/2] putting 3 run directories together ...")
    assert (tmp_path / "out" / "summary.md").is_file()
    assert parquet(tmp_path / "out") == parquet(runs / "whole")
    assert cli.main(["merge", str(tmp_path / "few"), *arguments, "--compact", "--quiet"]) == 0
    assert len(parquet(tmp_path / "few")) == 4
    assert_equal(dkn.read_results(tmp_path / "few"), dkn.read_results(runs / "whole"))
    assert cli.main(["merge", str(tmp_path / "other"), *arguments[:2]]) == 2
    assert "7 of 23 chunks" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "1", "1/", "2/2", "-1/2", "0/0", "a/b", "1/2/3"])
def test_a_shard_that_cannot_be_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(
        ["find", "--model", "demo", "--facts", "demo", "--out", str(tmp_path), f"--shard={text}"]
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert "must be I/N with I from 0 to N - 1" in line
