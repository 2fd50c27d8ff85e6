"""A run directory takes more facts behind those that it has, which keep their results."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dkn_engine as dkn
from dkn_engine.facts.scan import scan
from dkn_engine.run.pipeline import prepare
from dkn_engine.store import iter_results, read_manifest, read_results
from dkn_engine.store.directory import RunDirectory
from dkn_engine.store.plan import Plan, Shard
from tests.run.test_pipeline import CHEAP
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

FACTS = [
    dkn.Fact(f"f{i}", " ".join(f"w{5 + j}" for j in range(i % 4 + 2)), "w13") for i in range(9)
]
SMALL = dataclasses.replace(CHEAP, facts_per_chunk=2)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("gpt2", torch.float32)


def find(model: Any, facts: list[dkn.Fact], out: Path, **more: Any) -> list[dkn.FactResult]:
    return list(dkn.iter_dkns(model, words_tokenizer(), facts, SMALL, out, **more))


@pytest.fixture(scope="module")
def three(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over three facts, to be copied."""
    path = tmp_path_factory.mktemp("three")
    find(model, FACTS[:3], path)
    return path


@pytest.fixture(scope="module")
def grown(model: Any, three: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over three facts that took six more, to be copied."""
    path = shutil.copytree(three, tmp_path_factory.mktemp("grown") / "run")
    find(model, FACTS, path)
    return path


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(run.glob("*.parquet"))}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    ends = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=4)))
    of = draw(st.integers(1, 3))
    shard = Shard(draw(st.integers(0, of - 1)), of)
    sizes = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    return Plan(ends[-1], *sizes, shard, tuple(ends[:-1]))


@given(plans())
def test_every_fact_is_in_one_window_and_the_arithmetic_is_that_of_a_list(plan: Plan) -> None:
    """The plan against windows and chunks that are written out one by one."""
    windows: list[list[int]] = []
    chunks: list[tuple[int, int, int]] = []  # window, place in it, size
    for first, stop in zip([0, *plan.grown], [*plan.grown, plan.n_facts], strict=True):
        for start in range(first, stop, plan.window):
            positions = list(range(start, min(start + plan.window, stop)))
            for place, begin in enumerate(range(0, len(positions), plan.facts_per_chunk)):
                size = len(positions[begin : begin + plan.facts_per_chunk])
                chunks.append((len(windows), place, size))
            windows.append(positions)
    assert plan.n_windows == len(windows)
    assert plan.n_chunks == len(chunks)
    assert [list(plan.facts_of(i)) for i in range(len(windows))] == windows
    for i, (window, place, size) in enumerate(chunks):
        assert (plan.window_of(i), plan.place_in_window(i), plan.size(i)) == (window, place, size)
    own = [i for i in range(len(chunks)) if i % plan.shard.of == plan.shard.index]
    assert list(plan.chunks) == own
    assert plan.n_own == sum(chunks[i][2] for i in own)
    for window in range(len(windows)):
        assert list(plan.chunks_of(window)) == [i for i in own if chunks[i][0] == window]


@pytest.mark.parametrize("steps", [(3, 9), (2, 3, 4, 9), (8, 9)])
def test_facts_before_are_kept_and_those_behind_computed(
    model: Any, steps: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, bytes] = {}
    for n in steps:
        told: list[int] = []
        found = find(model, FACTS[:n], tmp_path, progress=lambda *how: told.extend(how))  # noqa: B023
        assert [r.fact_id for r in found] == [f.id for f in FACTS[:n]]
        now = files(tmp_path)
        assert kept.items() <= now.items()
        assert told[-2:] == [n, n]
        kept = now
    manifest = read_manifest(tmp_path)
    assert manifest["facts"]["n"] == 9
    assert manifest["grown"] == list(steps[:-1])
    # In one go they have the same neurons; only controls may be on other facts.
    once = find(model, FACTS, tmp_path / "once")
    for a, b in zip(once, read_results(tmp_path), strict=True):
        assert (a.fact_id, a.status) == (b.fact_id, b.status)
        assert a.probability == pytest.approx(b.probability, rel=1e-5)
        assert a.neurons.tolist() == b.neurons.tolist()
    # And a grown run that is there is only read.
    monkeypatch.setattr("dkn_engine.run.stages.Stages.files", None)
    assert [r.fact_id for r in find(model, FACTS, tmp_path)] == [f.id for f in FACTS]


@pytest.mark.parametrize("shard", [Shard(), Shard(1, 2)], ids=str)
def test_a_run_without_facts_begins_with_those_that_come(
    model: Any, shard: Shard, tmp_path: Path
) -> None:
    assert find(model, [], tmp_path / "run", shard=shard) == []
    for facts in (FACTS[:5], FACTS) if shard == Shard() else (FACTS[:5],):
        find(model, facts, tmp_path / "run", shard=shard)
        find(model, facts, tmp_path / "other", shard=shard)
    assert files(tmp_path / "run") == files(tmp_path / "other") != {}
    kept = ("facts", "grown", "format_version", "shard")
    run, other = (read_manifest(tmp_path / name) for name in ("run", "other"))
    assert [run.get(key) for key in kept] == [other.get(key) for key in kept]


def test_a_run_that_was_stopped_may_grow(model: Any, tmp_path: Path) -> None:
    results = dkn.iter_dkns(model, words_tokenizer(), FACTS[:5], SMALL, tmp_path)
    next(results)
    results.close()  # type: ignore[attr-defined]  # a generator
    (tmp_path / "facts-00002.parquet").unlink(missing_ok=True)
    assert [r.fact_id for r in find(model, FACTS, tmp_path)] == [f.id for f in FACTS]


def test_a_compacted_run_grows_and_is_compacted_again(model: Any, tmp_path: Path) -> None:
    find(model, FACTS[:5], tmp_path)
    compact(tmp_path)
    before = files(tmp_path)
    assert len(before) == 4
    find(model, FACTS, tmp_path)
    expected = [r.fact_id for r in iter_results(tmp_path)]
    compact(tmp_path)
    assert before.items() <= files(tmp_path).items()
    assert len(files(tmp_path)) == 8
    assert [r.fact_id for r in iter_results(tmp_path)] == expected == [f.id for f in FACTS]


def compact(run: Path) -> None:
    manifest = read_manifest(run)
    with RunDirectory.adopt(run, manifest) as directory:
        directory.compact()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (FACTS[:2], "facts: were 3, are now 2; a run takes more facts behind those"),
        (FACTS[::-1], "facts: were 3, are now 9, of which the first 3 are not those"),
        (
            [*FACTS[:2], dkn.Fact("f2", "w5", "w6"), *FACTS[3:]],
            "facts: were 3, are now 9, of which the first 3 are not those",
        ),
        ([FACTS[0], FACTS[2], FACTS[1]], r"facts: as many \(3\), but not the same"),
    ],
    ids=["fewer", "in front", "changed", "order"],
)
def test_facts_that_changed_are_refused(
    model: Any, facts: list[dkn.Fact], message: str, three: Path, tmp_path: Path
) -> None:
    shutil.copytree(three, tmp_path, dirs_exist_ok=True)
    before = files(tmp_path), (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(dkn.RunDirectoryError, match=message) as caught:
        find(model, facts, tmp_path)
    assert "give another directory" in str(caught.value)
    assert (files(tmp_path), (tmp_path / "manifest.json").read_bytes()) == before


def test_a_shard_takes_no_more(model: Any, tmp_path: Path) -> None:
    find(model, FACTS[:5], tmp_path, shard=Shard(0, 2))
    with pytest.raises(dkn.RunDirectoryError, match="were 5, are now 9, and one shard takes no"):
        find(model, FACTS, tmp_path, shard=Shard(0, 2))


def test_a_grown_run_is_merged_into_another_place(grown: Path, tmp_path: Path) -> None:
    dkn.merge(tmp_path / "whole", [grown])
    assert [r.fact_id for r in read_results(tmp_path / "whole")] == [f.id for f in FACTS]


def test_controls_are_on_facts_that_the_run_began_with(three: Path) -> None:
    before = prepare(FACTS[:3], SMALL)
    assert prepare(FACTS, SMALL, out=three).sample == before.sample
    assert prepare(FACTS, SMALL).sample != before.sample


@pytest.mark.parametrize(
    "noted", [[], [0], [3, 3], [9], [4, 2], ["3"], [True], 3], ids=lambda g: json.dumps(g)
)
def test_a_manifest_whose_growth_makes_no_sense_is_damaged(
    grown: Path, noted: Any, tmp_path: Path
) -> None:
    shutil.copytree(grown, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"grown": noted}))
    with pytest.raises(dkn.RunDirectoryError, match="is damaged: grown is"):
        read_manifest(tmp_path)


def test_a_scan_knows_the_digest_of_the_first_facts() -> None:
    found = scan(FACTS, 4, [3, 6, 20])
    assert found.grown == (3, 6)
    assert dict(found.digests) == {n: scan(FACTS[:n], 4).digest for n in (3, 6)}
    assert found.digest == scan(FACTS, 4).digest
    assert len(found.marks) == 3
