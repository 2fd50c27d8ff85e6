"""``~`` is the home folder in every path that a user gives, in Python and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.analysis.suite.labels import short_names
from dkn_engine.cli import main as cli
from dkn_engine.config import Config
from dkn_engine.facts import write_facts
from dkn_engine.files.local_paths import local_path
from dkn_engine.interchange import read_eleuther, write_eleuther
from dkn_engine.models.load import load_tokenizer
from dkn_engine.report import figures, summarize, write_summary
from dkn_engine.types import Fact
from tests.report.test_figures import some_bars
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

FACTS = [Fact("a", "w5 w9", "w13")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which holds a model; the program works elsewhere."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    tiny("gpt2", torch.float32).save_pretrained(folder / "model")
    words_tokenizer().save_pretrained(folder / "model")
    write_facts(folder / "facts.jsonl", FACTS)
    (folder / "config.json").write_text('{"facts_per_chunk": 2}', encoding="utf-8")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.chdir(elsewhere)
    return folder


def test_every_path_of_the_command_line(home: Path) -> None:
    asked = ["--model", "~/model", "--facts", "~/facts.jsonl", "--config", "~/config.json"]
    for part in (0, 1):
        out = [f"--out=~/runs/{part}", f"--shard={part}/2"]
        assert cli.main(["find", *asked, *out, "--quiet", "--no-report"]) in {0, 3}
    assert cli.main(["merge", "~/runs/whole", "~/runs/0", "~/runs/1", "--quiet"]) == 0
    for command in (["report", "~/runs/whole", "--quiet"], ["info", "~/runs/whole"]):
        assert cli.main(command) == 0
    assert (home / "runs" / "whole" / "report.html").is_file()
    asked[5] = str(home / "config.json")
    assert cli.main(["analyze", "sharing", *asked, "--out=~/analyses", "--quiet"]) == 0
    assert (home / "analyses" / "model" / "run" / "manifest.json").is_file()
    assert not list(Path.cwd().iterdir())


def test_every_path_of_the_python_interface(home: Path) -> None:
    model, tokenizer = dkn.load_model("~/model")
    assert load_tokenizer("~/model").vocab_size == tokenizer.vocab_size
    results = dkn.find_dkns(
        model, tokenizer, "~/facts.jsonl", Config.load("~/config.json"), "~/run"
    )
    assert (home / "run" / "manifest.json").is_file()
    for read in (dkn.read_results, dkn.load_results):
        assert [r.fact_id for r in read("~/run")] == ["a"]
    dkn.merge("~/merged", [Path("~/run")])
    write_summary("~/merged", results, summarize(results))
    assert (home / "merged" / "summary.md").is_file()
    write_eleuther("~/neurons.json", results)
    assert [f.fact_id for f in read_eleuther("~/neurons.json")] == ["a"]
    figures.save(some_bars(), "~/figures/bars")
    assert (home / "figures" / "bars.svg").is_file()
    assert short_names(["~"]) == ["home"]
    assert not list(Path.cwd().iterdir())


def test_only_a_tilde_in_front_is_home(home: Path) -> None:
    assert local_path("~") == home
    assert local_path(home.parent / "~") == home.parent / "~"
    assert local_path("a~b/~") == Path("a~b/~")


@pytest.mark.parametrize("path", ["~no-such-user/run", "~no-such-user"])
def test_the_home_of_nobody_is_one_line(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"dkn-engine: error: argument DIR: {path}: that home folder is not known; give the path in "
        "full (see dkn-engine report --help)"
    )
