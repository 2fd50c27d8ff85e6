"""The README's example runs as it stands, and what it names exists."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dkn_engine.cli.main import main
from dkn_engine.errors import FactError
from dkn_engine.facts import load_facts
from tests.support.demo import loading_and_asking_once

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_example() -> str:
    """The first block of Python in the README."""
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_python_example_is_short_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = python_example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    with loading_and_asking_once():
        exec(compile(code, "README.md", "exec"), {})
    assert "Berlin" in capsys.readouterr().out
    assert list((tmp_path / "runs/first").glob("facts-*.parquet"))


def test_first_run_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"## First run.*?```console\n(.*?)```.*?```text\n(.*?)```", README, re.DOTALL)
    assert found is not None
    program, *command = shlex.split(found[1])
    assert program == "dkn-engine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    with loading_and_asking_once():
        assert main([*command, "--threads", "1"]) == 0
    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert [line for line in found[2].splitlines() if line and line not in printed] == []
    (page,) = re.findall(r"^Open (.*)$", found[2], re.MULTILINE)
    assert (tmp_path / page).is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.-]+)\)", README))))
def test_linked_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_facts_file_is_read_and_has_the_keys_that_are_needed(tmp_path: Path) -> None:
    found = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert found is not None
    path = tmp_path / "facts.jsonl"
    path.write_text(found[1], encoding="utf-8")
    assert [f.answer for f in load_facts(path)] == ["Berlin"]
    # The keys named as needed are enough, and none of them can be left out.
    sentence = re.search(r"one fact a line; (.*?)\s+are\s+needed", README, re.DOTALL)
    assert sentence is not None
    needed = re.findall(r"`(\w+)`", sentence[1])
    entry = {key: value for key, value in json.loads(found[1]).items() if key in needed}
    path.write_text(json.dumps(entry), encoding="utf-8")
    assert len(load_facts(path)) == 1
    for key in needed:
        path.write_text(json.dumps({k: v for k, v in entry.items() if k != key}), encoding="utf-8")
        with pytest.raises(FactError, match=f"missing key '{key}'"):
            load_facts(path, format="jsonl")


def test_makefile_has_the_targets_that_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def recipe(*arguments: str) -> list[str]:
    """What make would do, if everything that it depends on were there."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("target", ["demo", "report"])
def test_what_other_code_made_is_not_gone_on_with_unless_asked(target: str) -> None:
    folder, begins = f"runs/{target}", re.compile(rf"dkn-engine (find|analyze) .*runs/{target}\b")
    anew = recipe(target)
    first = next(i for i, line in enumerate(anew) if begins.search(line))
    assert anew.index(f"rm -rf {folder}") < first
    assert f"rm -rf {folder}" in recipe(target, "CONTINUE=0")
    assert f"rm -rf {folder}" not in recipe(target, "CONTINUE=1")


def test_no_command_installs_what_is_on_no_index() -> None:
    """The package itself; checkouts have ``pip install -e '.[ray]'``, messages name packages."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.html")]
    texts += (ROOT / "dkn_engine").rglob("*.py")
    found = [
        f"{path}: {match[0]}"
        for path in texts
        for match in re.finditer(
            r"pip install [^\n]*dkn[-_]engine\b|dkn-engine\[", path.read_text(encoding="utf-8")
        )
    ]
    assert found == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_demo_ends_with_the_next_command() -> None:
    assert "source .venv/bin/activate" in recipe("demo")[-1]  # the rest says find itself


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_help_names_every_target() -> None:
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    told = re.findall(r"^  make ([a-z-]+)  +\S", done.stdout, re.MULTILINE)
    assert sorted(told) == sorted(targets.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
