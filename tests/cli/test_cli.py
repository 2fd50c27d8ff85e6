"""The program on a tiny saved model: output, progress, exit codes, one-line errors."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len as width

import dkn_engine as dkn
from dkn_engine.analysis.config import ANALYSES, EvolvabilityConfig, RobustnessConfig
from dkn_engine.cli import bench
from dkn_engine.cli import main as cli
from dkn_engine.cli.analyze import AllOptions
from dkn_engine.cli.console import Console
from dkn_engine.cli.find_options import FindOptions, Machines, Question, Selection
from dkn_engine.cli.list_settings import all_settings
from dkn_engine.cli.options import Input, Output, Reading, Settings, Training, Work
from dkn_engine.cli.settings import config_from_options, settings_from_options
from dkn_engine.config import Config
from dkn_engine.errors import BackendError, UserError
from dkn_engine.facts import write_facts
from dkn_engine.facts.ids import made_id
from dkn_engine.files.sections import dotted_keys
from dkn_engine.models import load
from dkn_engine.models.load import quiet
from dkn_engine.run.progress import duration
from dkn_engine.run.stages import Stages
from dkn_engine.store import read_manifest, read_results
from dkn_engine.types import Fact
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.words import words_tokenizer

FACTS = [
    replace(EITHER.fact, id="f0"),
    replace(BOTH.fact, id="f1"),
    replace(EITHER.fact, id="f2"),
    Fact("f3", "w7 w10", "w30"),
    replace(BOTH.fact, id="f4"),
]
SETTINGS = [
    *("--set", "facts_per_chunk=2"),
    *("--set", "selection.threshold=0.4"),
    *("--set", "topology.end=largest_merge"),
    *("--set", "topology.end_value=none"),
    *("--set", "topology.allow_root=false"),
    *("--set", "filter.min_alone=0.5"),
    *("--set", "filter.max_none=0.5"),
    *("--set", "filter.n_random=2"),
    *("--set", "filter.fill_reference=false"),
    "--no-report",  # which takes most of the time; see test_find_writes_the_page
]
ROW = f"{EITHER.fact.prompt}  {EITHER.fact.answer}"  # of the table, its first two cells
PLAIN = ("--fact-figures", "0")  # Figures of facts take most of the time of a report.
BROKEN = '{"id": "x%d", "prompt": "w4 w9"}\n'  # without an answer


@dataclass(frozen=True)
class Given:
    """A saved model, a file of facts and a finished run of both, with what it printed."""

    model: Path
    facts: Path
    run: Path
    out: str
    err: str

    def find(self, out: Path, *more: str) -> int:
        """Later options of one name count."""
        command = ["find", "--model", str(self.model), "--facts", str(self.facts)]
        return cli.main([*command, "--out", str(out), *SETTINGS, *more])


def save(folder: Path, noise: float = 0.01) -> Path:
    with quiet():
        planted_model(noise).save_pretrained(folder)
    words_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    write_facts(folder / "facts.jsonl", FACTS)
    made = Given(save(folder / "model"), folder / "facts.jsonl", folder / "run", "", "")
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        assert made.find(made.run) == 0
    return replace(made, out=out.getvalue(), err=err.getvalue())


@pytest.fixture
def run(given: Given, tmp_path: Path) -> Path:
    """The finished run, to be changed."""
    return Path(shutil.copytree(given.run, tmp_path / "run"))


def broken_facts(folder: Path, n: int, facts: list[Fact] = FACTS) -> Path:
    """Facts, and behind them entries of which none is one."""
    path = folder / "facts.jsonl"
    write_facts(path, facts)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(BROKEN % i for i in range(n))
    return path


def n_rows(text: str) -> int:
    """Facts in a printed table."""
    prompts = {fact.prompt for fact in FACTS}
    return sum(line.partition("  ")[0] in prompts for line in text.splitlines())


def before_chunks(monkeypatch: pytest.MonkeyPatch, told: Callable[[int], None]) -> None:
    """Call ``told`` with the number of each chunk before it is computed."""
    files = Stages.files

    def watched(stages: Stages, task: Any) -> Any:
        told(task.chunk)
        return files(stages, task)

    monkeypatch.setattr(Stages, "files", watched)


def one_error_line(capsys: pytest.CaptureFixture[str], quiet: bool = True) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert lines, "nothing on stderr"
    if quiet:
        assert len(lines) == 1, lines
    assert lines[-1].startswith("dkn-engine: ")
    return lines[-1]


def test_find_prints_the_table_and_writes_the_run(given: Given) -> None:
    assert n_rows(given.out) == 5
    assert ROW in given.out
    assert "4 of 5  4 known, 1 not known" in given.out
    assert "50%     2 of 4, too few facts" in given.out
    assert re.search(r"not known +rank", given.out)
    folder = str(given.run.parent)  # Names of files are not cut.
    assert all(width(line) <= 80 or folder in line for line in given.out.splitlines())
    steps = [line for line in given.err.splitlines() if line.startswith("[")]
    assert [s[:6] for s in steps] == ["[1/4] ", "[2/4] ", "[3/4] ", "[4/4] "]
    assert len(read_results(given.run)) == 5
    assert (given.run / "summary.md").is_file()
    assert json.loads((given.run / "summary.json").read_text())["summary"]["seconds"] > 0


def test_find_passes_its_options_on(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    original = load.load_model

    def watched(*how: Any, **more: Any) -> Any:
        loaded.append(how)
        return original(*how, **more)

    monkeypatch.setattr(load, "load_model", watched)
    code = given.find(
        tmp_path,
        *["--format", "jsonl", "--limit", "3", "--device", "cpu", "--dtype", "float64"],
        *["--preset", "paper", "--set", "filter.n_random=3", "--quiet"],
    )
    assert code == 0
    manifest = read_manifest(tmp_path)
    assert [r.fact_id for r in read_results(tmp_path)] == ["f0", "f1", "f2"]
    assert loaded == [(str(given.model), "cpu", "float64")]
    assert manifest["config"]["filter"]["n_random"] == 3
    assert given.find(tmp_path / "other", "--quiet", "--format", "lama") == 2


def test_log_has_plain_lines_without_a_terminal(given: Given) -> None:
    assert "\r" not in given.err
    assert "\x1b" not in given.err
    progress = [line for line in given.err.splitlines() if line.startswith("  5/5 facts")]
    assert len(progress) == 1
    assert progress[0].endswith("facts/s, 0 s left")


def test_bar_on_a_terminal(
    given: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert given.find(tmp_path) == 0
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


def test_quiet_find_says_nothing_on_stderr_and_json_is_one_document(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = broken_facts(tmp_path, 1)
    assert given.find(tmp_path / "run", "--facts", str(facts), "--quiet", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert document["summary"]["n_facts"] == 5
    assert [f["fact_id"] for f in document["facts"]] == ["f0", "f1", "f2", "f3", "f4"]
    found = [c["neurons"] for c in document["facts"][0]["components"]]
    assert sorted(map(sorted, found)) == sorted(sorted(map(list, s)) for s in EITHER.sets)
    assert document["model"]["name"] == str(given.model)
    assert document["problems"] == [
        {"file": str(facts), "line": 6, "id": "x0", "reason": "missing key 'answer'"}
    ]


def test_interrupted_run_goes_on(
    given: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(chunk: int) -> None:
        if chunk == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_chunks(patch, interrupt)
        assert given.find(tmp_path) == 130
    line = one_error_line(capsys, quiet=False)
    assert line == (
        "dkn-engine: interrupted; 2 of 5 facts are on disk; give the same command again to go on"
    )

    assert cli.main(["report", str(tmp_path), *PLAIN]) == 0
    out, err = capsys.readouterr()
    assert "2 of 5 facts are there" in err
    assert n_rows(out) == 2

    seen: list[int] = []
    before_chunks(monkeypatch, seen.append)
    assert given.find(tmp_path) == 0
    assert seen == [1, 2]
    out, err = capsys.readouterr()
    assert "finding DKNs of 5 facts, of which 2 are there" in err
    assert n_rows(out) == 5
    assert "Time:" not in out


def test_other_settings_in_the_same_directory_are_refused_before_the_model_is_loaded(
    given: Given,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert given.find(run, "--quiet", "--limit", "3") == 2
    assert "facts: were 5, are now 3" in one_error_line(capsys)
    assert given.find(run, "--quiet", "--model", str(save(tmp_path / "other", 0.02))) == 2
    assert f"model: was {given.model}" in one_error_line(capsys)

    def fail(*_: object, **_more: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(load, "load_model", fail)
    assert given.find(run, "--set", "seed=1") == 2
    assert "configuration: seed was 0, is now 1" in one_error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--facts", "missing.jsonl"], "missing.jsonl: there is no such file or folder"),
        (["--facts", "broken.jsonl"], "facts 'broken.jsonl' hold no fact that can be used; the"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
        (["--limit", "0"], "must be a positive integer; got '0'"),
        (["--config", "missing.toml"], "config missing.toml cannot be read"),
        (["--config", "a.yaml"], "config must be a .toml or .json file; got a.yaml"),
        (["--config", "a.toml", "--preset", "paper"], "not allowed with argument"),
        (["--set", "seed"], "--set must be section.key=value; got 'seed'"),
        (["--set", "attribution.steps=3"], "unknown key 'steps'; known: method, site"),
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
    given: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text(BROKEN % 0)
    command = ["find", "--model", str(given.model), "--facts", str(given.facts), "--out", "run"]
    assert cli.main([*command, "--quiet", *arguments]) == 2
    assert message in one_error_line(capsys)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments", [["moon"], ["find"], ["report"], ["report", "nowhere"], ["info", "nowhere"]]
)
def test_wrong_command_line_is_one_line_and_code_2(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dkn_engine.run.build_info.build_info", dict)
    assert cli.main(arguments) == 2
    one_error_line(capsys)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError("moon is not a local folder\nand more\n"),
            "cannot be loaded: moon is not a local",
        ),
        (UserError("first\nsecond"), "error: first second"),
        (BackendError("no triton here"), "error: no triton here"),
        (OSError(errno.ENOSPC, "No space left on device", "facts-0"), "No space left"),
    ],
)
def test_model_that_cannot_be_loaded_is_one_line(
    given: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def fail(*_: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(load, "load_model", fail)
    assert given.find(tmp_path, "--quiet") == 2
    assert message in one_error_line(capsys)


def test_full_disk_is_one_line_and_a_bug_shows_its_traceback(
    given: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[Exception] = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "facts-00000.parquet.tmp"),
        IndexError("a bug"),
    ]

    def fail(_chunk: int) -> None:
        raise errors.pop(0)

    before_chunks(monkeypatch, fail)
    assert given.find(tmp_path, "--quiet") == 2
    assert one_error_line(capsys).endswith("facts-00000.parquet.tmp: No space left on device")
    with pytest.raises(IndexError, match="a bug"):
        given.find(tmp_path, "--quiet")


def test_bad_facts_are_told_and_not_fatal(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, out = broken_facts(tmp_path, 5, FACTS[:1]), tmp_path / "run"
    assert given.find(out, "--facts", str(facts)) == 0
    err = capsys.readouterr().err
    assert f"left out: {facts}:2:x0: missing key 'answer'" in err
    assert "... and 2 more" in err
    assert cli.main(["report", str(out)]) == 0
    (line,) = (s for s in (out / "summary.md").read_text().splitlines() if "x4" in s)
    assert str(facts) in line.replace("\\", "")
    assert "missing key 'answer'" in line


@pytest.mark.parametrize("n", [0, 3])
def test_the_headline_counts_what_was_left_out_also_if_quiet(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    facts, run = broken_facts(tmp_path, n, FACTS[:1]), tmp_path / "run"
    head = "3 left out by the loader, listed in summary.md"
    for command in ("find", "report"):
        if command == "find":
            assert given.find(run, "--facts", str(facts), "--quiet") == 0
        else:
            assert cli.main(["report", str(run), "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert "1 of 1  1 known" in out
        assert err == ""
        for text in (out, (run / "summary.md").read_text()):
            assert (head in " ".join(text.split())) == (n > 0)
        assert json.loads((run / "summary.json").read_text())["summary"]["n_left_out"] == n
    assert ("3 left out by the loader" in (run / "report.html").read_text()) == (n > 0)


def test_the_date_is_a_setting(given: Given, tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    write_facts(facts, [replace(EITHER.fact, date="2012")])
    for dates, prompt in (
        ("prompt", f"In 2012, {EITHER.fact.prompt}"),
        ("auto", EITHER.fact.prompt),
    ):
        out = tmp_path / dates
        asked = ["--facts", str(facts), "--quiet", "--set", f"facts.dates={dates}"]
        assert given.find(out, *asked) in {0, 3}
        (result,) = read_results(out)
        assert result.prompt == prompt


def test_strict_stops_at_a_bad_fact(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = broken_facts(tmp_path, 1)
    assert given.find(tmp_path / "run", "--facts", str(facts), "--strict", "--quiet") == 2
    assert f"{facts}:6:x0: missing key 'answer'" in one_error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_strict_fails_if_a_fact_could_not_be_computed(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, out = tmp_path / "facts.jsonl", tmp_path / "run"
    write_facts(facts, [*FACTS[:1], Fact("long", "w9 " * 40 + "w10", "w15")])
    assert given.find(out, "--facts", str(facts), "--quiet") == 0
    capsys.readouterr()
    assert given.find(out, "--facts", str(facts), "--quiet", "--strict") == 2
    assert "--strict: 1 fact could not be used; the first: long: " in one_error_line(capsys)


def test_report_repeats_the_table_and_rewrites_the_summary(
    given: Given, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {name: (run / name).read_text() for name in ("summary.md", "summary.json")}
    (run / "summary.md").unlink()
    assert cli.main(["report", str(run), "--all", *PLAIN]) == 0
    tail = "\nFiles in"  # where the two are elsewhere
    assert capsys.readouterr().out.partition(tail)[0] == given.out.partition(tail)[0]
    assert {name: (run / name).read_text() for name in written} == written
    assert cli.main(["report", str(run), "--json", *PLAIN]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["n_degenerate"] == 2


def test_report_of_a_directory_that_cannot_be_written_still_prints(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "summary.md.tmp")

    monkeypatch.setattr("dkn_engine.report.files.write_files", refuse)
    assert cli.main(["report", str(run)]) == 0
    out, err = capsys.readouterr()
    assert ROW in out
    assert err == "the summary was not rewritten: summary.md.tmp: Permission denied\n"


def test_report_writes_the_page_and_its_figures(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run), "--cards", "3", "--fact-figures", "0"]) == 0
    out, err = capsys.readouterr()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="card"') == 3
    assert "2 more facts have no card here" in page
    assert {p.name for p in (run / "figures").iterdir()} >= {"drops.svg", "drops.png"}
    assert "report.html" not in out
    assert err.splitlines()[-1] == f"Open {run / 'report.html'}"
    assert cli.main(["report", str(run), "--fact-figures", "-1"]) == 2
    assert "must be a positive integer; got '-1'" in one_error_line(capsys)


def test_report_of_analyses_names_their_page_and_runs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "analyses"
    (folder / "demo").mkdir(parents=True)
    run.rename(folder / "demo" / "run")
    (folder / "report.html").touch()
    assert cli.main(["report", str(folder)]) == 2
    line = one_error_line(capsys)
    assert f"whose page is {folder / 'report.html'}; its runs" in line
    assert line.endswith(str(folder / "demo" / "run"))


def test_a_shard_without_a_chunk_says_why(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert given.find(tmp_path, "--shard", "1/2", "--set", "facts_per_chunk=8") == 0
    out, err = capsys.readouterr()
    assert "shard 1/2 has nothing to do: 5 facts make 1 chunk of 8 (facts_per_chunk)" in err
    assert "No facts were computed." in out


def test_report_without_matplotlib_says_how_to_get_figures(run: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from dkn_engine.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "report", str(run), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == (
        "report.html has no figures, since matplotlib is not installed; to get them: "
        "pip install matplotlib\n"
    )
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<details class="card"') == 5
    assert "<img" not in page
    assert not (run / "figures").exists()


def test_info_as_text_and_json(
    given: Given,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    information = {"version": "0.1.0", "backends": {"numba": True, "triton": "no GPU"}, "gpus": []}
    monkeypatch.setattr("dkn_engine.run.build_info.build_info", lambda: information)
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version          0.1.0",
        "backends.numba   True",
        "backends.triton  no GPU",
        "gpus             none",
    ]
    assert cli.main(["info", str(given.run), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["backends"] == information["backends"]
    assert data["run_directory"]["facts_done"] == "5 of 5"
    assert data["run_directory"]["config_hash"] == read_manifest(given.run)["config_hash"]


@pytest.mark.parametrize("command", [[], ["analyze"]])
def test_a_command_alone_shows_its_help(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("usage: dkn-engine")
    assert "examples:\n  dkn-engine" in said.err


COMMANDS = [
    *([], ["find"], ["report"], ["merge"], ["settings"], ["info"], ["bench"], ["completion"]),
    *(["analyze"], ["analyze", "all"], ["analyze", "clusterers"]),
    *(["analyze", name.replace("_", "-")] for name in ANALYSES),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_80_columns(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"usage: {' '.join(['dkn-engine', *command])} ")
    assert "examples:\n  dkn-engine" in text or "examples:\n  source <(dkn-engine" in text


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_help_has_sentences_and_names_what_is_required_first(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "--help"]) == 0
    listed = capsys.readouterr().out.partition("examples:")[0]
    if command != ["analyze"]:
        assert re.search(r"\n\n(required|options|output):\n", listed)
        assert listed.find("\nrequired:") in {-1, listed.find(":\n", listed.find("\n\n")) - 9}
    # An entry begins two columns in; its words end with a full stop.
    for entry in re.findall(r"^  (?=[-\w]).*(?:\n {5,}.*)*", listed, re.MULTILINE):
        if not entry.startswith("  ANALYSIS"):
            assert entry.rstrip().endswith("."), entry


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["find", "--model", "demo", "--fact", "demo"]) == 2
    line = one_error_line(capsys)
    assert "unrecognized arguments: --fact demo; did you mean '--facts'? (see" in line
    assert line.endswith("(see dkn-engine find --help)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --facts, or --prompt and --answer (see dkn-engine find --help)"),
        (["--prompt", "w5"], "--answer is missing: one question needs --prompt and --answer"),
        (["--answer", "w5"], "--prompt is missing"),
        (["--facts", "demo", "--prompt", "w5"], "give --facts, or --prompt and --answer, not both"),
        (["--prompt", " ", "--answer", "w5"], "'prompt' is empty"),
        (["--prompt", "is ___", "--answer", "w5"], "the blank ___ would be asked as text"),
    ],
)
def test_half_a_question_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["find", "--model", "demo", *arguments]) == 2
    assert message in one_error_line(capsys)


def test_one_question_goes_into_a_directory_of_its_name(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    fact = EITHER.fact
    asked = ["find", "--model", str(given.model), "--prompt", fact.prompt, "--answer", fact.answer]
    assert cli.main([*asked, *SETTINGS, "--quiet"]) == 0
    name = made_id(fact.prompt, fact.answer)
    run = Path("runs") / f"model-{name}"
    (result,) = read_results(run)
    assert (result.fact_id, result.prompt, result.answer) == (name, fact.prompt, fact.answer)
    found = [r for r in read_results(given.run) if r.fact_id == "f0"]
    assert result.probability == pytest.approx(found[0].probability, rel=1e-5)
    assert capsys.readouterr().out.splitlines()[-1].startswith("Next: dkn-engine find --model ")


def test_the_directory_is_named_after_model_and_facts(given: Given) -> None:
    options = FindOptions(
        input=Input(model="org/Llama-3.2-1B", settings=Settings(), reading=Reading()),
        question=Question(facts="data/capitals.csv"),
        selection=Selection(),
        machines=Machines(),
        output=Output(),
    )
    assert options.directory == Path("runs/Llama-3.2-1B-capitals")
    part = replace(options, machines=Machines(shard=dkn.Shard(1, 4)))
    assert part.directory == Path("runs/Llama-3.2-1B-capitals-1-of-4")
    assert replace(options, out=Path("x")).directory == Path("x")


def test_the_folder_of_analyses_is_named_after_models_and_facts(tmp_path: Path) -> None:
    options = AllOptions(
        models=("org/Llama-3.2-1B", "gpt2"),
        facts=("data/capitals.csv",),
        reading=Reading(),
        work=Work(),
        training=Training(),
        output=Output(),
    )
    assert options.folder == Path("runs/analyses-Llama-3.2-1B-gpt2-capitals")
    assert replace(options, work=Work(out=tmp_path)).folder == tmp_path


def test_find_writes_the_page_and_says_where_to_go_on(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["find", "--model", str(given.model), "--facts", str(given.facts), "--limit", "1"]
    settings = [s for s in SETTINGS if s != "--no-report"]
    assert cli.main([*asked, *settings, "--out", str(tmp_path / "run")]) == 0
    page = tmp_path / "run" / "report.html"
    assert EITHER.fact.answer in page.read_text(encoding="utf-8")
    assert list((tmp_path / "run" / "figures").glob("*.svg"))
    head, opened, following = capsys.readouterr().out.splitlines()[-3:]
    assert re.fullmatch(r"[01] of 1 known fact (has|have) a DKN\.", head)
    assert opened == f"Open {page}"
    assert following.startswith(f"Next: dkn-engine analyze all --models {given.model} --facts ")


def test_a_run_whose_facts_are_all_unknown_says_why_and_has_a_code_of_its_own(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["find", "--model", str(given.model), "--prompt", "w7 w10", "--answer", "w30"]
    assert cli.main([*asked, *SETTINGS, "--out", str(tmp_path / "run"), "--quiet"]) == 3
    text = capsys.readouterr().out
    assert "To be known, an answer must have rank 1" in text
    assert "p at least 0.05 (filter.min_probability)" in text
    assert re.search(r"The closest: 'w7 w10' → 'w30': rank \d+, p ", text)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_options_and_files(shell: str, tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(["completion", shell]) == 0
    script = out.getvalue()
    if shell == "zsh":
        first, _, script = script.partition("\n")
        assert first.endswith("bashcompinit")
    (tmp_path / "facts.csv").touch()

    def completed(*words: str) -> set[str]:
        line = " ".join(map(shlex.quote, words))
        code = f"COMP_WORDS=(dkn-engine {line}); COMP_CWORD={len(words)}; _dkn_engine\n"
        code += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{code}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        return set(done.stdout.split())

    assert completed("fi") == {"find"}
    assert completed("analyze", "fact") == {"fact-check", "facts.csv"}
    assert completed("find", "--fa") == {"--facts"}
    assert completed("find", "--facts", "fac") == {"facts.csv"}
    assert completed("report", "--fact") == {"--fact-figures"}


def test_settings_lists_every_setting_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    every = all_settings()
    run = [s.key for s in every if s.section.partition(".")[0] not in {*ANALYSES, "clusterers"}]
    assert run == ["facts_per_chunk", "seed", *dotted_keys(run_sections())]
    assert [s.key for s in every if not s.meaning] == []
    assert cli.main(["settings"]) == 0
    text = capsys.readouterr().out
    for setting in every:
        assert f"  {setting.key}={json.dumps(setting.value)}\n" in text
    assert cli.main(["settings", "topolgy"]) == 2
    assert one_error_line(capsys).endswith("did you mean 'topology'?")


def run_sections() -> dict[str, Any]:
    return {k: v for k, v in Config().to_dict().items() if isinstance(v, dict)}


@pytest.mark.parametrize("preset", ["default", "paper", "released"])
def test_settings_as_a_file_are_those_settings(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["settings", "--toml", "--preset", preset]) == 0
    (tmp_path / "config.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert Config.load(tmp_path / "config.toml") == config_from_options(preset)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("threshold=0.2", "selection.threshold"),
        ("selection.treshold=0.2", "selection.threshold"),
        ("topology.max_sapn=2", "topology.max_span"),
        ("filtr.n_random=3", "filter.n_random"),
    ],
)
def test_a_misspelt_setting_is_told_what_may_be_meant(key: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean '{meant}'\?$"):
        config_from_options(changes=[key])
    with pytest.raises(UserError, match=rf"did you mean '{meant}'\?$"):
        Config().set(key.partition("=")[0], 1)


def test_version_is_the_one_that_runs_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"dkn-engine {dkn.__version__}\n"


def test_threads_are_as_they_were(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    seen: list[int] = []
    before_chunks(monkeypatch, lambda _: seen.append(torch.get_num_threads()))
    # One fact: threads more than there are processors wait for one another.
    assert given.find(tmp_path, "--threads", str(before + 1), "--quiet", "--limit", "1") == 0
    assert seen == [before + 1]
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


def test_reader_that_goes_away_is_no_error(run: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with program("report", str(run), stdout=write) as process:
        os.close(write)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_narrow_encoding_is_no_error(run: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = ["report", str(run), "--quiet", *PLAIN]
    with program(*command, stdout=subprocess.PIPE, env=environment) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert ROW in out
    assert "partial ? full" in out


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


def test_settings_of_analyses_are_set_and_read_from_files(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("seed = 3\n[evolvability]\nsteps = 7\nshares = [0.1]\n")
    sections = {"evolvability": EvolvabilityConfig(), "robustness": RobustnessConfig()}
    changes = [
        *("seed=4", "robustness.factors=2,-1", "robustness.on=answer", "evolvability.lr=1"),
        "evolvability.rates.D=[0.5, 1]",
    ]
    config, changed = settings_from_options("default", file, changes, sections)
    assert config.seed == 4
    assert changed["robustness"] == RobustnessConfig(factors=(2.0, -1.0), on=("answer",))
    evolvability = changed["evolvability"]
    assert isinstance(evolvability, EvolvabilityConfig)
    assert (evolvability.steps, evolvability.shares, evolvability.lr) == (7, (0.1,), 1.0)
    assert evolvability.rates == {**EvolvabilityConfig().rates, "D": (0.5, 1.0)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "evolvability.steps=3"], "evolvability.steps: unknown section; known: facts, "),
        (["--set", "robustness.steps=3"], "unknown key 'steps'; known: n_random, kinds, per_kind"),
        (["--set", "robustness.kinds=swap"], "kinds must be among replace, add, delete, each once"),
        (["--set", "robustness.per_kind=0"], "per_kind must be an integer of at least 1; got 0"),
        (
            ["--set", "robustness.n_random=2", "--draws", "3"],
            "say the same thing; give one of them",
        ),
        (["--config", "a.toml"], "a.toml: robustness must be a table; got 3"),
    ],
)
def test_wrong_settings_of_an_analysis_are_one_line(
    given: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text("robustness = 3\n")
    names = ["--model", str(given.model), "--facts", str(given.facts), "--out", "out", "--quiet"]
    assert cli.main(["analyze", "robustness", *names, *arguments]) == 2
    assert message in one_error_line(capsys)
    assert not (tmp_path / "out").exists()
