"""The program with a fake model and pipeline: output, progress, exit codes, one-line errors."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len as width

import dkn_engine
from dkn_engine import facts
from dkn_engine.cli import bench
from dkn_engine.cli import main as cli
from dkn_engine.cli.console import Console, duration
from dkn_engine.cli.settings import config_from_options
from dkn_engine.config import Config
from dkn_engine.errors import BackendError, FactError, UserError
from dkn_engine.models.fingerprint import Identity
from dkn_engine.run import pipeline
from dkn_engine.run.pipeline import Run, on_disk
from dkn_engine.run.tasks import Task
from dkn_engine.store import read_manifest, read_results
from dkn_engine.store.tables import chunk_files
from dkn_engine.types import Component, Drops, Fact, FactResult
from tests.support.words import words_tokenizer


@dataclass(frozen=True)
class Problem:
    file: Path
    line: int | None
    id: str | None
    reason: str


def result_for(fact: Fact) -> FactResult:
    if fact.id == "f3":
        return FactResult(
            fact.id, "not_known", "rank 7", fact.prompt, fact.answer, fact.relation, 0.01, 7
        )
    pair = np.array([[0, 1], [1, 2]], np.int32)
    return FactResult(
        fact.id,
        "ok",
        prompt=fact.prompt,
        answer=fact.answer,
        probability=0.8,
        rank=1,
        neurons=np.concatenate([pair, pair + 1]),
        scores=np.ones(4, np.float32),
        components=(Component(pair, 0, 1, 1), Component(pair + 1, 0, 1, 1)),
        dkn=(0, 1),
        partial_drop=0.25,
        full_drop=0.75,
        redundancy=1.5,
        candidates=Drops(0.25, 0.75, 1.5),
        controls={"random": Drops(0.0, 0.01, n=20)},
        convergence_delta=np.full(3, 1e-6, np.float32),
        n_points=np.full(3, 5, np.int32),
        path="sweep",
    )


class Engine:
    """Stands in for facts, models and the pipeline; tests change its parts."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.load: Callable[[], None] = lambda: None
        self.before_chunk: Callable[[int], None] = lambda i: None
        self.result = result_for

    def iter_facts(
        self,
        source: str,
        format: str = "auto",
        limit: int | None = None,
        *,
        blank: str = "skip",
        dates: str = "auto",
        strict: bool = False,
        problems: list[Problem] | None = None,
    ) -> Iterator[Fact]:
        self.calls["facts"] = (source, format, limit, blank, dates, strict)
        if source == "missing.jsonl":
            Path(source).read_text()
        if strict and self.problems:
            raise FactError(f"{self.problems[0].file}: {self.problems[0].reason}")
        assert problems is not None
        problems.extend(self.problems)
        for i in range(0 if source == "empty" else min(limit or 5, 5)):
            yield Fact(f"f{i}", f"The capital of land {i} is", "Rome")

    def load_model(self, name: str, device: str = "auto", dtype: str = "auto") -> tuple[str, str]:
        self.calls["model"] = (name, device, dtype)
        self.load()
        return "model", "tokenizer"

    def iter_run(
        self,
        model: str,
        tokenizer: str,
        run: Run,
        out: Path,
        *,
        progress: Callable[[int, int], None],
    ) -> Iterator[FactResult]:
        self.calls["config"] = run.config
        name = str(self.calls["model"][0])
        identity = Identity(name, name)

        def compute(tasks: Iterator[Task]) -> Iterator[tuple[int, dict[str, bytes]]]:
            for task in tasks:
                self.before_chunk(task.chunk)
                results = [self.result(f) for f in task.facts]
                yield task.chunk, chunk_files(results, task.positions, run.config.hash)

        return on_disk(run, out, identity, words_tokenizer(), compute, progress)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(facts, "iter_facts", engine.iter_facts)
    monkeypatch.setattr(pipeline, "iter_run", engine.iter_run)
    monkeypatch.setattr(dkn_engine, "load_model", engine.load_model, raising=False)
    return engine


def find(out: Path, *more: str) -> int:
    arguments = ["--model", "demo", "--facts", "demo", "--out", str(out)]
    return cli.main(["find", *arguments, "--set", "facts_per_chunk=2", *more])


def one_error_line(capsys: pytest.CaptureFixture[str], quiet: bool = True) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert lines, "nothing on stderr"
    if quiet:
        assert len(lines) == 1, lines
    assert lines[-1].startswith("dkn-engine: ")
    return lines[-1]


def test_find_prints_the_table_and_writes_the_run(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(tmp_path / "run") == 0
    out, err = capsys.readouterr()
    assert "The capital of land 0 is → Rome" in out
    assert "4 of 4 known facts, 100%" in out
    assert "not known: rank 7" in out
    assert all(width(line) <= 80 or str(tmp_path) in line for line in out.splitlines())
    steps = [line for line in err.splitlines() if line.startswith("[")]
    assert [s[:6] for s in steps] == ["[1/4] ", "[2/4] ", "[3/4] ", "[4/4] "]
    assert len(read_results(tmp_path / "run")) == 5
    assert (tmp_path / "run" / "summary.md").is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["summary"]["seconds"] > 0


def test_find_passes_its_options_on(engine: Engine, tmp_path: Path) -> None:
    code = find(
        tmp_path,
        *["--format", "jsonl", "--limit", "3", "--device", "cpu", "--dtype", "float32"],
        *["--preset", "released", "--set", "filter.n_random=7", "--quiet"],
    )
    assert code == 0
    assert engine.calls["facts"] == ("demo", "jsonl", 3, "literal", "auto", False)
    assert engine.calls["model"] == ("demo", "cpu", "float32")
    assert engine.calls["config"].filter.n_random == 7
    assert engine.calls["config"].attribution.site == "pre"


def test_log_has_plain_lines_without_a_terminal(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(tmp_path) == 0
    err = capsys.readouterr().err
    assert "\r" not in err
    assert "\x1b" not in err
    progress = [line for line in err.splitlines() if "/5 facts" in line]
    assert len(progress) == 1
    assert progress[0].startswith("  5/5 facts, ")
    assert progress[0].endswith("facts/s, 0 s left")


def test_bar_on_a_terminal(
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert find(tmp_path) == 0
    err = capsys.readouterr().err
    assert "5/5" in err
    assert "fact/s" in err
    assert "\r" in err


def test_what_is_said_beside_a_bar_has_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console = Console()
    with console.progress(4) as progress:
        progress(2, 4)
        console.say("half of it")
        progress(4, 4)
    console.say("all of it")
    lines = capsys.readouterr().err.splitlines()
    (at,) = (i for i, line in enumerate(lines) if "half of it" in line)
    assert lines[at].strip() == "half of it"
    assert any("4/4" in line for line in lines[at:])
    assert lines[-1] == "all of it"


def test_log_is_not_flooded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 4))  # Four seconds between two calls.
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Console().progress(110, done=10) as progress:
        for i in range(20, 120, 10):
            progress(i, 110)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  40/110 facts, 2.5 facts/s, 28 s left",
        "  70/110 facts, 2.5 facts/s, 16 s left",
        "  100/110 facts, 2.5 facts/s, 4 s left",
        "  110/110 facts, 2.5 facts/s, 0 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (190, "3 min 10 s"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_quiet_find_says_nothing_on_stderr(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(tmp_path, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_json_is_one_document(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.problems = [Problem(Path("facts.jsonl"), 3, None, "empty answer")]
    assert find(tmp_path, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["summary"]["n_facts"] == 5
    assert [f["fact_id"] for f in document["facts"]] == ["f0", "f1", "f2", "f3", "f4"]
    assert document["facts"][0]["components"][0]["neurons"] == [[0, 1], [1, 2]]
    assert document["model"]["name"] == "demo"
    assert document["problems"] == [
        {"file": "facts.jsonl", "line": 3, "id": None, "reason": "empty answer"}
    ]


def test_interrupted_run_goes_on(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(i: int) -> None:
        if i == 1:
            raise KeyboardInterrupt

    engine.before_chunk = interrupt
    assert find(tmp_path) == 130
    line = one_error_line(capsys, quiet=False)
    assert line == "dkn-engine: interrupted; rerun the same command to continue"

    assert cli.main(["report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "2 of 5 facts are there" in err
    assert out.count("→ Rome") == 2

    seen: list[int] = []
    engine.before_chunk = seen.append
    assert find(tmp_path) == 0
    assert seen == [1, 2]
    out, err = capsys.readouterr()
    assert "finding DKNs of 5 facts, 2 of them are there" in err
    assert out.count("→ Rome") == 5
    assert "Time:" not in out


def test_other_settings_in_the_same_directory_are_refused_before_the_model_is_loaded(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(tmp_path, "--quiet") == 0
    capsys.readouterr()
    del engine.calls["model"]
    assert find(tmp_path, "--set", "seed=1") == 2
    assert "configuration: seed was 0, is now 1" in one_error_line(capsys)
    assert "model" not in engine.calls
    assert find(tmp_path, "--quiet", "--limit", "3") == 2
    assert "facts: were 5, are now 3" in one_error_line(capsys)
    assert find(tmp_path, "--quiet", "--model", "other") == 2
    assert "model: was demo" in one_error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--facts", "missing.jsonl"], "facts 'missing.jsonl' cannot be read: No such file"),
        (["--facts", "empty"], "facts 'empty' hold no fact"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["--limit", "0"], "must be a positive integer; got '0'"),
        (["--config", "missing.toml"], "config missing.toml cannot be read"),
        (["--config", "a.yaml"], "config must be a .toml or .json file; got a.yaml"),
        (["--config", "a.toml", "--preset", "paper"], "not allowed with argument"),
        (["--set", "seed"], "--set must be section.key=value; got 'seed'"),
        (["--set", "attribution.steps=3"], "unknown key 'steps'; known: site, baseline"),
        (["--set", "moon.x=3"], "unknown section; known: facts, attribution"),
        (["--set", "seed.x=3"], "unknown section"),
        (["--set", "attribution=3"], "unknown key 'attribution'"),
        (["--set", "attribution.tolerance=2"], "tolerance must be between 0 and 1; got 2.0"),
        (["--set", "attribution.tolerance=high"], "must be a number; got 'high'"),
        (["--set", "selection.top_k=2.5"], "must be an integer; got 2.5"),
        (["--set", "topology.condense=3"], "must be true or false; got 3"),
        (["--set", "attribution.site=mid"], "site must be one of 'post', 'pre'"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_mistake_is_one_line_and_code_2(
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(tmp_path / "run", "--quiet", *arguments) == 2
    assert message in one_error_line(capsys)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments", [[], ["moon"], ["find"], ["report"], ["report", "nowhere"], ["info", "nowhere"]]
)
def test_wrong_command_line_is_one_line_and_code_2(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dkn_engine, "build_info", dict, raising=False)
    assert cli.main(arguments) == 2
    one_error_line(capsys)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("moon is not a local folder\nand more\n"), "'demo' cannot be loaded: moon is not"),
        (UserError("first\nsecond"), "error: first second"),
        (BackendError("no triton here"), "error: no triton here"),
        (OSError(errno.ENOSPC, "No space left on device", "facts-0"), "No space left"),
    ],
)
def test_model_that_cannot_be_loaded_is_one_line(
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
) -> None:
    def fail() -> None:
        raise error

    engine.load = fail
    assert find(tmp_path, "--quiet") == 2
    assert message in one_error_line(capsys)


def test_full_disk_is_one_line(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(i: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "facts-00000.parquet.tmp")

    engine.before_chunk = full
    assert find(tmp_path, "--quiet") == 2
    assert one_error_line(capsys).endswith("facts-00000.parquet.tmp: No space left on device")


def test_bug_shows_its_traceback(engine: Engine, tmp_path: Path) -> None:
    def bug(i: int) -> None:
        raise IndexError("a bug")

    engine.before_chunk = bug
    with pytest.raises(IndexError, match="a bug"):
        find(tmp_path, "--quiet")


def test_bad_facts_are_told_and_not_fatal(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.problems = [Problem(Path("facts.jsonl"), i, f"x{i}", "empty answer") for i in range(5)]
    assert find(tmp_path) == 0
    err = capsys.readouterr().err
    assert "left out: facts.jsonl:0:x0: empty answer" in err
    assert "... and 2 more" in err
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "facts.jsonl:4 x4: empty answer" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("n", [0, 3])
def test_the_headline_counts_what_was_left_out_also_if_quiet(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    engine.problems = [Problem(Path("facts.jsonl"), i, f"x{i}", "empty answer") for i in range(n)]
    head = "5 facts (3 left out: see summary.md): 4 known" if n else "5 facts: 4 known"
    for command in (["find"], ["report", str(tmp_path), "--quiet"]):
        code = find(tmp_path, "--quiet") if command == ["find"] else cli.main(command)
        assert code == 0
        out, err = capsys.readouterr()
        assert head in out
        assert err == ""
        written = (tmp_path / "summary.md").read_text()
        assert ("5 facts (3 left out: listed below): 4 known" if n else head) in written
        assert json.loads((tmp_path / "summary.json").read_text())["summary"]["n_left_out"] == n
    assert ("3 left out by the loader" in (tmp_path / "report.html").read_text()) == (n > 0)


def test_the_date_is_a_setting(engine: Engine, tmp_path: Path) -> None:
    assert find(tmp_path, "--quiet", "--set", "facts.dates=prompt") == 0
    assert engine.calls["facts"][4] == "prompt"


def test_strict_stops_at_a_bad_fact(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.problems = [Problem(Path("facts.jsonl"), 3, "x", "empty answer")]
    assert find(tmp_path / "run", "--strict", "--quiet") == 2
    assert "facts.jsonl: empty answer" in one_error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_strict_fails_if_a_fact_could_not_be_computed(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.result = lambda fact: FactResult(fact.id, "skipped", "prompt is too long")
    assert find(tmp_path, "--quiet") == 0
    capsys.readouterr()
    assert find(tmp_path, "--quiet", "--strict") == 2
    assert "5 facts could not be used; the first: f0: prompt is too long" in one_error_line(capsys)


def test_report_repeats_the_table_and_rewrites_the_summary(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(tmp_path, "--quiet") == 0
    printed = capsys.readouterr().out
    written = {name: (tmp_path / name).read_text() for name in ("summary.md", "summary.json")}
    (tmp_path / "summary.md").unlink()
    assert cli.main(["report", str(tmp_path), "--all"]) == 0
    assert capsys.readouterr().out == printed
    assert {name: (tmp_path / name).read_text() for name in written} == written
    assert cli.main(["report", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["n_degenerate"] == 4


def test_report_of_a_directory_that_cannot_be_written_still_prints(
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find(tmp_path, "--quiet") == 0
    capsys.readouterr()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "summary.md.tmp")

    monkeypatch.setattr("dkn_engine.report.files.write_files", refuse)
    assert cli.main(["report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "→ Rome" in out
    assert err == "the summary was not rewritten: summary.md.tmp: Permission denied\n"


def test_report_writes_the_page_and_its_figures(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(tmp_path, "--quiet") == 0
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--cards", "3", "--fact-figures", "0"]) == 0
    out, err = capsys.readouterr()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="card"') == 3
    assert "2 more facts have no card here" in page
    assert {p.name for p in (tmp_path / "figures").iterdir()} >= {"drops.svg", "drops.png"}
    assert "report.html" not in out
    assert err.splitlines()[-1] == (
        f"{tmp_path / 'report.html'} is written, its figures are in {tmp_path / 'figures'}"
    )
    assert cli.main(["report", str(tmp_path), "--fact-figures", "-1"]) == 2
    assert "must be a positive integer; got '-1'" in one_error_line(capsys)


def test_report_without_matplotlib_says_how_to_get_figures(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(tmp_path, "--quiet") == 0
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from dkn_engine.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "report", str(tmp_path), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == (
        "report.html has no figures, since matplotlib is not installed; to get them: "
        "pip install matplotlib\n"
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="card"') == 5
    assert "<svg" not in page
    assert not (tmp_path / "figures").exists()


def test_info_as_text_and_json(
    engine: Engine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    information = {"version": "0.1.0", "backends": {"numba": True, "triton": "no GPU"}, "gpus": []}
    monkeypatch.setattr(dkn_engine, "build_info", lambda: information, raising=False)
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version          0.1.0",
        "backends.numba   True",
        "backends.triton  no GPU",
        "gpus             none",
    ]
    assert find(tmp_path, "--quiet") == 0
    capsys.readouterr()
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["backends"] == information["backends"]
    assert data["run_directory"]["facts_done"] == "5 of 5"
    assert data["run_directory"]["config_hash"] == read_manifest(tmp_path)["config_hash"]


@pytest.mark.parametrize("command", [[], ["find"], ["report"], ["info"]])
def test_help_fits_80_columns(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "dkn-engine" in text
    assert cli.main(["--version"]) == 0


def test_threads_are_as_they_were(engine: Engine, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    seen: list[int] = []
    engine.before_chunk = lambda i: seen.append(torch.get_num_threads())
    assert find(tmp_path, "--threads", str(before + 1), "--quiet") == 0
    assert seen == [before + 1] * 3
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["selection.top_k=7"], ("selection", "top_k", 7)),
        (
            ["attribution.quadrature=trapezoid", "attribution.n_steps=9"],
            ("attribution", "n_steps", 9),
        ),
        (
            ["topology.end=largest_merge", "topology.end_value=None"],
            ("topology", "end_value", None),
        ),
        (["facts.aliases=True"], ("facts", "aliases", True)),
        (["attribution.rows_per_batch=64"], ("attribution", "rows_per_batch", 64)),
    ],
)
def test_set_changes_one_value(changes: list[str], expected: tuple[str, str, Any]) -> None:
    section, name, value = expected
    config = config_from_options("default", None, changes)
    assert getattr(getattr(config, section), name) == value


def test_set_of_the_same_value_keeps_the_hash() -> None:
    changes = ["topology.min_persistence=0", "seed=0", "attribution.site=post"]
    assert config_from_options("default", None, changes).hash == Config().hash


def test_config_file_and_set_together(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("seed = 3\n[selection]\ntop_k = 5\n")
    config = config_from_options("default", file, ["selection.top_k=6"])
    assert (config.seed, config.selection.top_k) == (3, 6)


def program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dkn_engine", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        **options,
    )


def test_module_runs_without_a_traceback(tmp_path: Path) -> None:
    with program("report", str(tmp_path), stdout=subprocess.DEVNULL) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == f"dkn-engine: error: {tmp_path} is not a run directory: no manifest.json there\n"


def test_reader_that_goes_away_is_no_error(engine: Engine, tmp_path: Path) -> None:
    assert find(tmp_path, "--quiet") == 0
    read, write = os.pipe()
    os.close(read)
    with program("report", str(tmp_path), stdout=write) as process:
        os.close(write)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_narrow_encoding_is_no_error(engine: Engine, tmp_path: Path) -> None:
    assert find(tmp_path, "--quiet") == 0
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = ["report", str(tmp_path), "--quiet"]
    with program(*command, stdout=subprocess.PIPE, env=environment) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "The capital of land 0 is ? Rome" in out


def test_bench_names_its_cases_and_refuses_others(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list"]) == 0
    assert "equal_points" in capfd.readouterr().out.split()
    assert cli.main(["bench", "nonsense"]) == 2
    assert capfd.readouterr().err.splitlines() == [
        "CASE must be one of peak, equal_points, accuracy, subsets, scaling, memory; got 'nonsense'"
    ]


def test_bench_without_sources_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "dkn_engine" / "cli" / "bench.py"))
    assert cli.main(["bench"]) == 2
    assert "travel with the sources" in one_error_line(capsys)


def test_a_preset_that_is_none_is_named() -> None:
    with pytest.raises(
        UserError, match="preset must be one of default, paper, released; got 'papr'"
    ):
        config_from_options("papr")
