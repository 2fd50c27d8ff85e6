"""The benchmark of the whole of ``find``: the published procedure, other commits, a calculation."""

from __future__ import annotations

import dataclasses
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from benchmarks import rows
from benchmarks.find import other_commit, run
from benchmarks.find.calculation import BASE, Counted, Plan, calculated, milliseconds
from benchmarks.find.engine import STAGES, taken
from benchmarks.find.other_commit import ROOT, tree_of
from benchmarks.find.published import Settings, after_scores, published
from benchmarks.find.turns import Engine, alike
from benchmarks.kernels.estimate import ANSWER, ARITHMETIC, MODELS, PEAK_16
from benchmarks.scale import templama
from benchmarks.speed import peers
from dkn_engine.facts import write_facts
from dkn_engine.models.layout import find_layout
from tests.support import published as plain
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.tiny import MASK_ID, sequence, tiny
from tests.support.words import words_tokenizer

# --- the published procedure ---


class Numbers:
    """A tokenizer whose texts are their tokens' numbers."""

    eos_token_id = MASK_ID

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids)


@pytest.fixture(params=["gpt2", "llama"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def case_of(name: str, model: Any) -> peers.Case:
    return peers.Case(model, find_layout(model), sequence(6, 1), MASK_ID, "pre")


def test_published_stages_are_those_of_the_plain_loops(name: str) -> None:
    model = tiny(name)
    case = case_of(name, model)
    asked = plain.Asked(name, model, Numbers())
    prompt, answer = (" ".join(map(str, ids)) for ids in (case.sequence.ids, [case.target]))
    scores = asked.scores(prompt, answer, 5)
    sizes = []
    for share, quantile in ((0.01, 0.05), (0.05, 0.05), (0.2, 0.2)):
        neurons = plain.located(scores, share)
        matrix = plain.distances(name, model, neurons)
        clusters = plain.clusters(neurons, matrix, quantile)
        family = asked.family(prompt, answer, clusters, 0.3)
        found = published(case, Settings(5, share, quantile, 0.3))
        assert [tuple(n) for n in found.neurons.tolist()] == neurons
        assert members(found.neurons, found.clusters) == {c.neurons for c in clusters}
        assert members(found.neurons, found.family) == {c.neurons for c in family}
        sizes.append((len(clusters), len(family)))
    assert max(n for n, _ in sizes) >= 2
    assert any(kept for _, kept in sizes)


def members(neurons: np.ndarray, clusters: Any) -> set[frozenset[tuple[int, int]]]:
    return {frozenset((int(l), int(i)) for l, i in neurons[at]) for at in clusters}


def test_published_procedure_without_neurons_in_adjacent_layers_has_no_clusters(name: str) -> None:
    case = case_of(name, tiny(name))
    scores = np.zeros((case.layout.n_layers, case.layout.width))
    scores[0, [3, 5]] = 1.0
    found = after_scores(case, scores)
    assert found.neurons.tolist() == [[0, 3], [0, 5]]
    assert (found.clusters, found.family) == ([], [])


@pytest.mark.parametrize("peer", [peers.released, peers.captum, peers.lean])
def test_peers_take_16_bits(name: str, peer: Any) -> None:
    """NumPy has no bfloat16; the scores are those of float32 but for rounding."""
    model = tiny(name, torch.float32)
    case = peers.Case(model, find_layout(model), sequence(6, 1), MASK_ID)
    exact = peer(case, 4)
    model.bfloat16()
    found = peer(case, 4)
    assert found.dtype == np.float32
    # Three layers of products of 40 terms, each rounded to 8 bits.
    assert np.linalg.norm(found - exact) < 0.2 * np.linalg.norm(exact)


# --- engines of other commits ---


def git(folder: Path, *command: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", *command],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of a package; the second changes a Python file, the extension is not in git."""
    root = tmp_path / "root"
    (root / "dkn_engine").mkdir(parents=True)
    (root / "csrc").mkdir()
    (root / "csrc" / "core.cpp").write_text("one")
    (root / "dkn_engine" / "engine.py").write_text("before")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    git(root, "tag", "first")
    (root / "dkn_engine" / "engine.py").write_text("after")
    git(root, "commit", "-qam", "second")
    (root / "dkn_engine" / "_native.cpython-3-x.so").write_text("compiled")
    return root


def test_another_commits_files_come_with_the_extension_of_the_same_sources(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    monkeypatch.setattr(other_commit, "build", built.append)
    tree = tree_of("first", tmp_path / "a", root=repository)
    assert (tree / "dkn_engine" / "engine.py").read_text() == "before"
    assert (tree / "dkn_engine" / "_native.cpython-3-x.so").read_text() == "compiled"
    assert built == []
    (repository / "csrc" / "core.cpp").write_text("two")
    tree = tree_of("first", tmp_path / "b", root=repository)
    assert (tree / "csrc" / "core.cpp").read_text() == "one"
    assert not list((tree / "dkn_engine").glob("*.so"))
    assert built == [tree]


def test_an_unknown_commit_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no files of commit 'nowhere': .*nowhere"):
        tree_of("nowhere", tmp_path / "a", root=repository)


def found(**changes: Any) -> dict[str, Any]:
    same = {"status": "ok", "neurons": 9, "components": 3, "dkn": [0, 2], "drops": [0.25, 0.5]}
    return same | changes


def test_engines_are_alike_by_dkn_and_by_drops_of_equal_components() -> None:
    before = [found(), found(), found(), found(drops=[0.25, math.nan])]
    others = [found(drops=[0.25, 0.75]), found(dkn=[0]), found(neurons=8, drops=[9.0, 9.0])]
    after = [*others, before[3]]
    assert alike(before, before) == (0, 0.0)
    assert alike(before, after) == (1, 0.25)


# --- an engine's process ---


N_FACTS = 3


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """This tree's engine on a model with planted facts."""
    folder = tmp_path_factory.mktemp("planted")
    planted_model().save_pretrained(folder / "model")
    words_tokenizer().save_pretrained(folder / "model")
    write_facts(folder / "facts.jsonl", [EITHER.fact, BOTH.fact])
    config = {"filter": {"fill_reference": False}}
    given = {"model": str(folder / "model"), "facts": str(folder / "facts.jsonl")}
    with Engine(ROOT, **given, n=N_FACTS, config=config) as one:
        yield one


def test_an_engines_process_measures_and_says_what_it_found(engine: Engine) -> None:
    first, second = engine.ask("time"), engine.ask("time")
    assert first["seconds"] > 0
    assert first["rate"] > 0
    assert [r["status"] for r in first["results"]] == ["ok"] * N_FACTS
    assert alike(first["results"], second["results"]) == (0, 0.0)


def test_an_engines_process_says_what_it_held(engine: Engine) -> None:
    # A model of 100 KB; torch may keep some buffers.
    assert 0 <= engine.ask("peak")["mib"] < 500


def test_an_engine_that_ends_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with"):
        Engine(ROOT, model=str(tmp_path), facts="demo", n=1, config={})


def test_stages_hold_every_operation_and_all_rows(engine: Engine) -> None:
    counted = engine.ask("stages")
    assert counted["facts"] == N_FACTS
    for stage in STAGES:
        assert counted["flop"][f"{stage}_layers"] > 0
        assert counted["calls"][stage] >= len(counted["climbs"][stage]) > 0
    # Path points climb with gradients; nothing else does.
    assert [name for name in counted["climbs"] if name.endswith("_backward")] == [
        "attribution_backward"
    ]
    # What a run has beside this chunk: reading the reference facts.
    assert sum(counted["flop"].values()) / 1e9 < engine.ask("count")["gflop"]


def test_facts_are_spread_or_repeated_under_other_ids() -> None:
    facts = [dkn.Fact(name, "x", "y") for name in "abcde"]
    assert taken(facts, 2) == [facts[0], facts[2]]
    assert taken(facts, 5) == facts
    assert [f.id for f in taken(facts[:2], 5)] == ["a", "b", "a-1", "b-1", "a-2"]


# --- the calculation ---

COUNTED = Counted(
    facts=8,
    answer_tokens=ANSWER,
    flop={"clean": (8e9, 0.0), "attribution": (80e9, 0.0), "filter": (16e9, 0.0)},
    calls={"clean": 30, "attribution": 90, "filter": 240},
    climbs={"clean": [64], "attribution": [800], "filter": [200, 300] * 8},
    backward={"clean": [], "attribution": [512, 512], "filter": []},
    one_by_one=True,
)


def test_the_counted_model_itself_takes_what_was_counted() -> None:
    found = calculated(COUNTED, BASE, Plan(8))
    assert [found[s].flop for s in STAGES] == pytest.approx([1e9, 10e9, 2e9])
    assert [found[s].climbs for s in STAGES] == pytest.approx([1 / 8, 3 / 8, 2])
    # Filter: 16 climbs of half of the layers, 40 launches a layer; attribution's count twice.
    assert found["filter"].launches == pytest.approx(240 / 8 * 40)
    assert found["attribution"].launches == pytest.approx((1 + 2 * 2) / 8 * 30 * 40)
    assert found["filter"].bytes == pytest.approx(
        (BASE.layers * BASE.layer + BASE.d * BASE.v) * BASE.size
    )


SHARED = dataclasses.replace(
    COUNTED, climbs={**COUNTED.climbs, "filter": [1600, 2400]}, one_by_one=False
)


@pytest.mark.parametrize(("rows", "climbs"), [(1024, 5), (2000, 3), (100, 40), (10**6, 2)])
def test_a_filter_of_a_whole_chunk_needs_climbs_by_rows(rows: int, climbs: int) -> None:
    found = calculated(SHARED, BASE, Plan(8, rows))
    assert found["filter"].climbs == pytest.approx(climbs / 8)


@pytest.mark.parametrize("plan", [Plan(8, 100), Plan(32, 4096)])
def test_a_filter_of_one_fact_at_a_time_gains_nothing_from_larger_chunks(plan: Plan) -> None:
    # 16 climbs of eight facts; 1,024 rows at most in each.
    assert calculated(COUNTED, BASE, plan)["filter"].climbs == 2
    twice = dataclasses.replace(COUNTED, answer_tokens=ANSWER / 4)  # 800 and 1,200 rows
    assert calculated(twice, BASE, plan)["filter"].climbs == 3


def test_a_filter_with_many_questions_one_after_another_shares_each_among_its_facts() -> None:
    rounds = dataclasses.replace(SHARED, climbs={**SHARED.climbs, "filter": [300] * 12})
    few, many = (calculated(rounds, BASE, Plan(n, 4096)) for n in (8, 32))
    assert few["filter"].climbs == pytest.approx(12 / 8)
    assert many["filter"].climbs == pytest.approx(12 / 32)


def test_more_facts_a_chunk_share_climbs_until_these_are_full() -> None:
    few, many = (calculated(SHARED, BASE, Plan(n, 1 << 20)) for n in (8, 32))
    for stage in STAGES:
        assert many[stage].climbs == pytest.approx(few[stage].climbs / 4)
        assert many[stage].flop == few[stage].flop
    full = calculated(SHARED, BASE, Plan(32, 512))
    assert full["attribution"].climbs == pytest.approx((7 + 4 + 4) / 32)  # 3,200 rows, twice 2,048


def test_twice_the_layers_are_four_times_the_operations_of_attribution() -> None:
    deep = dataclasses.replace(BASE, layers=2 * BASE.layers)
    once, twice = (calculated(COUNTED, m, Plan(8, 1 << 20)) for m in (BASE, deep))
    assert twice["attribution"].flop / once["attribution"].flop == pytest.approx(60 * 61 / 930)
    assert twice["filter"].flop / once["filter"].flop == pytest.approx(2)


def test_a_stage_takes_the_longest_of_its_parts() -> None:
    m = MODELS["LLaMA-2-7B, bfloat16"]
    found = calculated(COUNTED, m, Plan(8, 4096))
    parts = found["attribution"].parts(m)
    assert parts[0] == pytest.approx(found["attribution"].flop / (ARITHMETIC * PEAK_16))
    assert found["attribution"].seconds(m) == max(parts)
    total = sum(max(stage.parts(m)) for stage in found.values())
    assert milliseconds(found, m) == pytest.approx(1e3 * total)


def test_the_paper_says_what_each_stage_is_bound_by() -> None:
    found = {(r.case, r.metric): r.median for r in run.on_paper("engine", COUNTED)}
    for case in {case for case, _ in found}:
        total = sum(
            max(found[case, f"{stage}_{part}_ms"] for part in ("arithmetic", "memory", "launches"))
            for stage in STAGES
        )
        assert found[case, "milliseconds_per_fact"] == pytest.approx(total, rel=1e-4)
    assert len(found) == len(MODELS) * len(run.PLANS) * (4 * len(STAGES) + 1)


def test_two_workers_are_compared_with_one_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def watched(model: str, facts: Path, out: Path, n: int, *options: str) -> templama.Measured:
        asked.append(options[-1])
        return templama.Measured(9.0 / int(options[-1]), 0.0, (), 0)

    def one(*_: Any) -> templama.FactsOnDisk:
        return templama.FactsOnDisk(Path("facts"), 10)

    monkeypatch.setattr(run, "watched_find", watched)
    monkeypatch.setattr(run, "some_facts", one)
    for name in ("trained", "dated_facts", "fresh"):
        monkeypatch.setattr(run, name, lambda *_: Path("somewhere"))
    (row,) = run.workers(run.Setting(Path("templama.jsonl"), turns=3))
    assert asked == ["1", "2"] * 3
    assert (row.metric, row.median, row.repeats) == ("times_as_fast_as_1_worker", 2.0, 3)


@pytest.mark.parametrize("case", [run.small, run.workers])
def test_cases_of_the_small_model_ask_for_its_facts(case: Any) -> None:
    with pytest.raises(SystemExit, match="--facts FILE"):
        list(case(run.Setting()))


# --- the tables ---


def test_the_table_shows_ratios_and_leaves_out_what_was_not_measured() -> None:
    given = [
        rows.row("demo model, 16 facts", "dkn_engine", "cpu_seconds_per_fact", [0.5]),
        rows.row("demo model, 16 facts", "dkn_engine", "gflop_per_fact", [40.0]),
        rows.row("demo model, 16 facts", "dkn_engine", "times_as_fast_as_before", [2.5]),
        rows.row("demo model, 16 facts", "published procedure", "cpu_seconds_per_fact", [90.0]),
    ]
    lines = run.table([{k: str(v) for k, v in vars(r).items()} for r in given]).splitlines()
    assert lines[1].split(": ")[1].split() == ["dkn_engine", "0.5000", "40.00", "2.50"]
    assert lines[2].split(": ")[1].split() == ["published", "procedure", "90.0000"]


def test_the_page_shows_the_committed_tables() -> None:
    page = (ROOT / "docs" / "whole_run.md").read_text(encoding="utf-8")
    measured, paper = run.table(rows.read(run.FILE)).split("\n\n")
    assert len(measured.splitlines()) > 1
    assert measured in page
    assert len(paper.splitlines()) > 1
    assert paper in page


def test_the_page_shows_the_measured_scaling_and_memory() -> None:
    page = " ".join((ROOT / "docs" / "whole_run.md").read_text(encoding="utf-8").split())
    of = {r["case"].removeprefix("demo model, "): float(r["median"]) for r in rows.read(run.FILE)}

    def rate(case: str) -> str:
        return f"{of[case]:.2f}"

    def mib(case: str) -> str:
        return f"{of[f'memory, {case}']:.0f}"

    by_facts = sorted(rate(f"facts {n}") for n in (1, 2, 4, 8, 16, 32))
    assert f"{by_facts[0]} to {by_facts[-1]} whatever the number of facts" in page
    eight = rate("facts 8")  # the default
    one, four, sixteen = (rate(f"facts_per_chunk {n}") for n in (1, 4, 16))
    said = f"{one} with `facts_per_chunk=1`, {four} with 4, {eight} with 8, {sixteen} with 16"
    assert said in page
    few, some, *many = [rate(f"rows_per_batch {n}") for n in (64, 256, 1024, 4096)]
    assert len(set(many)) == 1
    said = f"{few} with `rows_per_batch=64`, {some} with 256, {many[0]} with 1,024 and 4,096"
    assert said in page
    facts = [mib(f"facts {n}") for n in (8, 32, 96)]
    assert f"{facts[0]} MiB for 8 facts, {facts[1]} for 32, {facts[2]} for 96" in page
    rows_64, rows_256 = (mib(f"rows_per_batch {n}") for n in (64, 256))
    assert f"{rows_64} for 8 with `rows_per_batch=64`, {rows_256} with 256" in page
