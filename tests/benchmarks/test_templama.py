"""TempLAMA end to end: dated facts, the small model, watched runs, the calculation, the page."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch

import dkn_engine as dkn
from benchmarks import rows
from benchmarks.kernels.estimate import ANSWER, FACTS, MEASURED, MODELS
from benchmarks.rows import Row
from benchmarks.scale import templama
from benchmarks.scale.stage_clock import STAGES
from benchmarks.scale.templama import Measured, Setting, find, require_bit_equal, resident
from benchmarks.scale.templama_bert import BertTraining, masked_facts
from benchmarks.scale.templama_model import Training, dated_facts, train, trained
from benchmarks.scale.templama_paper import KINDS, calculated, count, scaled
from benchmarks.speed.attribution_cases import gflop
from dkn_engine.__main__ import main as program
from dkn_engine.config import Config, FilterConfig
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import find_layout
from dkn_engine.run.stages import Stages
from tests.docs.test_committed_results import rows_of, table

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
TINY = Training(layers=2, width=32, vocabulary=400, known=0.8, batch=8, most_epochs=120)
Examined = tuple[Any, Any, dkn.Results]
NAMES = ("Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ivy", "Jo")


def write_templama(path: Path) -> Path:
    """Forty usable entries, and one whose blank is in front."""
    entries = [
        {
            "query": f"{name} plays for _X_.",
            "answer": [{"name": f"Club {(i + year) % 4}"}, {"name": "Another"}],
            "date": str(2010 + year),
            "id": f"{name}_{2010 + year}",
            "relation": "P54",
        }
        for i, name in enumerate(NAMES)
        for year in range(4)
    ]
    entries.insert(3, entries[0] | {"query": "_X_ is the chair of bp.", "id": "front"})
    path.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("templama")
    facts = write_templama(folder / "facts.jsonl")
    return Setting(facts, some=40, workers=1, training=TINY, root=folder / "build")


@pytest.fixture(scope="module")
def small(setting: Setting) -> Path:
    return trained(setting.training, dated_facts(setting.facts), setting.root)


@pytest.fixture(scope="module")
def examined(setting: Setting, small: Path) -> Examined:
    """The small model, and its results for all facts."""
    model, tokenizer = dkn.load_model(small, device="cpu")
    config = Config(filter=FilterConfig(n_regrouped=0))  # what is known takes no control
    return model, tokenizer, dkn.find_dkns(model, tokenizer, dated_facts(setting.facts), config)


class Fork:
    """``subprocess.Popen`` of ``python -m dkn_engine``, by a fork that has all imported already."""

    def __init__(
        self, command: Sequence[str], *, stdout: int, stderr: IO[bytes], start_new_session: bool
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "dkn_engine"]
        assert (stdout, start_new_session) == (subprocess.DEVNULL, True)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(stderr.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
                code = program(command[3:])
                sys.stderr.flush()
            finally:
                os._exit(code)


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the benchmark begin as forks, and compute one draw of the costliest control.

    That the command it makes is one that a fresh process understands is for
    ``test_a_run_that_fails_ends_the_benchmark``, and for every run of the benchmark.
    """
    monkeypatch.setattr(
        templama, "subprocess", SimpleNamespace(Popen=Fork, DEVNULL=subprocess.DEVNULL)
    )

    def quick(*given: Any, **more: Any) -> Measured:
        return find(*given, "--set", "filter.n_regrouped=1", **more)

    monkeypatch.setattr(templama, "find", quick)


def test_a_year_goes_in_front_of_its_prompt(setting: Setting) -> None:
    facts = dated_facts(setting.facts)
    assert len(facts) == 40
    assert facts[2] == dkn.Fact(
        "Ada_2012", "In 2012, Ada plays for", "Club 2", relation="P54", date="2012"
    )


def test_training_knows_what_the_engine_calls_known(small: Path, examined: Examined) -> None:
    said = json.loads((small / "training.json").read_text())
    _, _, results = examined
    known = [r.status for r in results].count("ok")
    assert known + [r.status for r in results].count("not_known") == said["facts"] == 40
    assert said["known"] == known / 40 >= TINY.known


def test_training_gives_the_same_model_each_time(setting: Setting, tmp_path: Path) -> None:
    facts, before = dated_facts(setting.facts), torch.get_rng_state()
    short = dataclasses.replace(TINY, known=0.0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(short, facts, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("a", "b")]
    assert weights[0] == weights[1]


def test_training_that_does_not_succeed_says_so(setting: Setting, tmp_path: Path) -> None:
    short = dataclasses.replace(TINY, most_epochs=1)
    with pytest.raises(SystemExit, match=r"% of facts known after 1 epochs"):
        train(short, dated_facts(setting.facts), tmp_path)


def medians(found: Iterator[Row]) -> dict[str, float]:
    return {r.metric: r.median for r in found}


@pytest.mark.usefixtures("quick_runs")
def test_a_bert_is_trained_on_blanks_anywhere_and_knows_what_the_engine_calls_known(
    setting: Setting,
) -> None:
    settings = BertTraining(layers=2, width=32, vocabulary=300, batch=8, most_epochs=150)
    setting = dataclasses.replace(setting, bert=settings, every=3, masked=14, timed=4, pause=0.01)
    facts = masked_facts(setting.facts, 3)
    assert len(facts) == 14
    assert facts[1].prompt == "In 2010, [MASK] is the chair of bp."
    rows = list(templama.bert(setting))
    said = {r.metric: r.median for r in rows if r.case == "training, BERT"}
    found = {r.metric: r.median for r in rows if r.case == "14 facts, 1 worker, BERT"}
    assert said["facts"] == found["facts"] == 14
    assert said["share_known"] == pytest.approx(found["ok"] / 14, rel=1e-5)
    assert said["share_known"] >= settings.known


@pytest.mark.usefixtures("quick_runs", "small")
def test_a_run_is_watched_killed_and_continued(setting: Setting) -> None:
    killed = medians(templama.resume(dataclasses.replace(setting, pause=0.01)))
    assert 3 <= killed["chunks_there_when_killed"] < 5  # of five, so half are three
    assert killed["files_bit_equal"] == 4 * 5
    both = killed["seconds_until_killed"] + killed["seconds_resumed"]
    assert killed["seconds_more"] == pytest.approx(both - killed["seconds_undisturbed"], rel=1e-3)
    held = medians(templama.contents("", "", setting.root / "runs" / "killed"))
    assert held["facts"] == held["ok"] + held.get("not_known", 0) == 40
    assert held["ok"] >= 0.8 * 40
    assert held["degenerate"] == held["share_degenerate_of_known"] * held["ok"]
    assert 0 < held["output_mib"] < 10


def test_figures_of_a_watched_run() -> None:
    found = medians(templama.speed("", "", 40, Measured(8.0, 4.0, (1.0, 2.0, 3.0), 0)))
    assert found == {
        "seconds": 8.0,
        "facts_per_second": 5.0,
        "cpu_milliseconds_per_fact": 100.0,
        "peak_mib_until_10%": 1.0,
        "peak_mib_until_50%": 2.0,
        "peak_mib_until_100%": 3.0,
    }


def test_a_run_that_fails_ends_the_benchmark(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none\.jsonl"):
        find("demo", tmp_path / "none.jsonl", tmp_path / "run", 8)


def test_rows_of_other_cases_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "templama.csv"
    for case, values in (("one", [1.0]), ("two", [2.0]), ("one", [3.0, 5.0])):
        found = [rows.row(case, "x", "y", values)]

        def measured(_: Setting, found: list[rows.Row] = found) -> Iterator[rows.Row]:
            return iter(found)

        monkeypatch.setitem(templama.CASES, case, measured)
        templama.measure(Setting(tmp_path), [case], table)
    there = [(r["case"], float(r["median"]), r["repeats"]) for r in rows.read(table)]
    assert there == [("two", 2.0, "1"), ("one", 4.0, "2")]


def test_tables_that_differ_end_the_benchmark(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="must be measured first"):
        require_bit_equal(tmp_path / "a", tmp_path / "b")
    for name in ("a", "b"):
        (tmp_path / name / "facts-0.parquet").write_bytes(b"same")
    assert require_bit_equal(tmp_path / "a", tmp_path / "b") == 1
    (tmp_path / "a" / "facts-0.parquet").write_bytes(b"sane")
    with pytest.raises(SystemExit, match=r"facts-0\.parquet differs"):
        require_bit_equal(tmp_path / "a", tmp_path / "b")


def test_memory_of_a_process_holds_that_of_its_children() -> None:
    code = "import sys; held = b'x' * (1 << 26); print('ready', flush=True); sys.stdin.read()"
    before = resident(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert resident(child.pid) > 64
        assert resident(os.getpid()) - before > 60
        child.communicate()
    assert resident(child.pid) == 0


def test_stages_together_hold_every_operation(setting: Setting, examined: Examined) -> None:
    (model, tokenizer, results), facts = examined, dated_facts(setting.facts)
    known = [f for f, r in zip(facts, results, strict=True) if r.status == "ok"][:2]
    counts, components = count(model, tokenizer, known)
    assert components > 0
    stages = Stages(model, tokenizer, known, Config())
    assert stages.reference is not None
    # Hooks on the layers, as the count has, make the engine try two rows before it believes them.
    watched = [m.register_forward_pre_hook(lambda *_: None) for m in find_layout(model).layers]
    with hooks(watched):
        whole = gflop(lambda: stages.results(known))
    assert sum(counts.flop.values()) / 1e9 == pytest.approx(whole)
    for stage in STAGES:
        for kind in KINDS:
            assert counts.flop[stage, kind] > 0
        assert counts.calls[stage] > 0
    with pytest.raises(SystemExit, match="does not know"):
        count(model, tokenizer, [dataclasses.replace(known[0], answer="Another Club")])


FIGURES = {"answer_tokens": 1.25} | {
    f"{stage}_{kind}": 2.0 + i
    for i, stage in enumerate(STAGES)
    for kind in ("layers_gflop", "head_gflop", "passes")
}


def test_the_counted_model_itself_is_scaled_by_its_answers_alone() -> None:
    found = scaled(FIGURES, MEASURED["SmolLM2-135M, float32"])
    for i, stage in enumerate(STAGES):
        assert found[stage].flop == pytest.approx(2e9 * (2 + i) * ANSWER / 1.25)


def test_twice_the_layers_are_four_times_the_row_layers_of_attribution() -> None:
    shape = MEASURED["SmolLM2-135M, float32"]
    no_head = FIGURES | {f"{stage}_head_gflop": 0.0 for stage in STAGES}
    deep = dataclasses.replace(shape, layers=2 * shape.layers)
    once, twice = scaled(no_head, shape), scaled(no_head, deep)
    ratio = {stage: twice[stage].flop / once[stage].flop for stage in STAGES}
    # 60 * 61 / (30 * 31): each point passes through the layers above its own.
    assert ratio.pop("attribution") == pytest.approx(60 * 61 / (30 * 31))
    assert list(ratio.values()) == pytest.approx([2.0] * 3)


def test_gpus_share_chunks() -> None:
    found = {(r.case, r.metric): r.median for r in calculated(FIGURES)}
    for name in MODELS:
        seconds = sum(found[name, f"{stage}_milliseconds_per_fact"] / 1e3 for stage in STAGES)
        one = found[f"{name}, 1 GPUs", "minutes"]
        assert one == pytest.approx(8 * -(-FACTS // 8) * seconds / 60, rel=1e-4)
        # 983 chunks: 123 of them on the fullest of 8 GPUs, 16 on that of 64.
        assert found[f"{name}, 8 GPUs", "minutes"] == pytest.approx(one * 123 / 983, rel=1e-4)
        assert found[f"{name}, 64 GPUs", "minutes"] == pytest.approx(one * 16 / 983, rel=1e-4)


# --- the page ---


def figures() -> dict[tuple[str, str], dict[str, str]]:
    return {(r["case"], r["metric"]): r for r in rows_of("templama.csv")}


def median(case: str, metric: str, places: int = 0) -> str:
    return f"{float(figures()[case, metric]['median']):,.{places}f}"


RUNS = ("all facts, 1 worker", "all facts, 2 workers", "200 facts, 1 worker")


def test_the_page_shows_the_measured_runs() -> None:
    expected = [
        [
            median(case, "seconds"),
            median(case, "facts_per_second", 2),
            median(case, "cpu_milliseconds_per_fact"),
            " / ".join(median(case, f"peak_mib_until_{share}%") for share in (10, 50, 100)),
            figures()[case, "seconds"]["load"],
        ]
        for case in RUNS
    ]
    assert [cells[1:] for cells in table(PAGE, "| run | seconds")] == expected


def test_the_page_shows_what_was_found() -> None:
    cases = ("all facts, 1 worker", "200 facts, 1 worker")
    expected = [
        [
            median(case, "ok"),
            median(case, "not_known") if (case, "not_known") in figures() else "0",
            median(case, "degenerate"),
            median(case, "neurons_per_known_fact"),
            median(case, "components_per_known_fact"),
            median(case, "output_mib", 1),
        ]
        for case in cases
    ]
    assert [cells[1:] for cells in table(PAGE, "| facts | known")] == expected


def test_the_page_shows_the_bert() -> None:
    case, training, time = "300 facts, 1 worker, BERT", "training, BERT", "24 facts, time, BERT"
    metrics = ["facts", "ok", "degenerate", "neurons_per_known_fact", "components_per_known_fact"]
    metrics += ["seconds", "cpu_milliseconds_per_fact", "peak_mib_until_100%"]
    expected = [median(case, metric) for metric in metrics]
    (cells,) = table(
        PAGE, "| facts | known | degenerate | KNs a fact | components a fact | seconds"
    )
    assert cells == [*expected, figures()[case, "seconds"]["load"]]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    of = {key: float(r["median"]) for key, r in figures().items()}
    cost = [of[c, "cpu_milliseconds_per_fact"] for c in (case, "all facts, 1 worker")]
    for sentence in (
        f"One in four, {median(training, 'facts')} facts",
        f"{median(training, 'epochs')} epochs, {median(training, 'cpu_seconds')} s of processor",
        f"it knew {100 * of[training, 'share_known']:.1f} % of them",
        f"A fact costs {cost[0] / cost[1]:.0f} times as much",
        f"the controls took {100 * of[time, 'share_controls']:.0f} %, the subset lattice "
        f"{100 * of[time, 'share_lattice']:.0f} %, attribution "
        f"{100 * of[time, 'share_attribution']:.0f} %",
    ):
        assert sentence in text


def test_the_page_shows_the_calculation() -> None:
    found = table(PAGE, "| model | clean")
    expected = []
    for name in reversed(list(MODELS)):
        parts = [median(name, f"{stage}_milliseconds_per_fact", 1) for stage in STAGES]
        minutes = [median(f"{name}, {n} GPUs", "minutes", 2) for n in (1, 8, 64)]
        expected.append([name, *parts, *minutes])
    assert found == expected


def share(name: str) -> str:
    return f"{100 * float(figures()['96 facts, time', f'share_{name}']['median']):.0f} %"


def test_the_text_of_the_page_has_the_figures_of_the_rows() -> None:
    killed = "600 facts, killed at half"
    ratio = figures()["600 facts, 2 workers", "times_as_fast_as_1_worker"]
    middle, low, high = (f"{float(ratio[key]):.2f}" for key in ("median", "q20", "q80"))
    cpu = [
        float(figures()[f"600 facts, {workers}", "cpu_milliseconds_per_fact"]["median"])
        for workers in ("1 worker", "2 workers")
    ]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for sentence in (
        f"{100 * float(figures()['training', 'share_known']['median']):.1f} % of the facts",
        f"{median('training', 'epochs')} epochs",
        f"{median('training', 'cpu_seconds')} s of processor time",
        f"killed after {median(killed, 'seconds_until_killed')} s",
        f"{median(killed, 'seconds_resumed')} s more to finish",
        f"undisturbed {median(killed, 'seconds_undisturbed')} s",
        f"difference is {median(killed, 'seconds_more')} s",
        f"all {median(killed, 'files_bit_equal')} tables",
        f"all {median('all facts, 2 workers', 'files_bit_equal_to_1_worker')} tables",
        f"{middle} times ({low} to {high})",
        f"costs {100 * (cpu[1] / cpu[0] - 1):.0f} % more processor time",
        f"controls {share('controls')}, the subset lattice {share('lattice')}, attribution "
        f"{share('attribution')}, the rest (clean pass, selection, topology, tables) "
        f"{share('clean')}.",
        f"under edits takes {share('head')}, building and grouping edits in Python "
        f"{share('edits')}, reading figures off lattices {share('reading_off')},",
    ):
        assert sentence in text
