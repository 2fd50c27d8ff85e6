"""What the program says where something that it needs is not there, or not as it should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("numpy", "torch", "transformers", "scipy", "pyarrow", "dkn_engine._native")
# How a package breaks: it is not there, lacks a name, or links to a library that is not there.
BREAKS = {
    "absent": "raise ModuleNotFoundError(f'No module named {name!r}', name=name)",
    "other version": "raise ImportError(f'cannot import name x from {name}', name=name)",
    "library": "raise OSError(f'libx.so.12 ({name}): cannot open shared object file')",
}
BROKEN = [
    *((module, "absent") for module in NEEDED),
    *(("torch", how) for how in BREAKS if how != "absent"),
    *(("numpy", how) for how in BREAKS if how != "absent"),
]
PROGRAM = """
import importlib.abc, sys
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            {breaks}
sys.meta_path.insert(0, Broken())
assert {module!r} not in sys.modules
from dkn_engine.__main__ import main
sys.exit(main())
"""
# Runs programs in forks of a process that has imported torch, which takes longer than all else.
BEHIND_TORCH = """
import json, os, sys, torch
for line in sys.stdin:
    code, arguments, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv[1:] = arguments
        exec(code, {"__name__": "__main__"})
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


Ran = subprocess.CompletedProcess[str]


def run(module: str, how: str, *arguments: str) -> Ran:
    code = PROGRAM.format(module=module, breaks=BREAKS[how])
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def run_anywhere() -> Iterator[Callable[..., Ran]]:
    """As ``run``; what torch does without is run behind torch's import."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", BEHIND_TORCH], **pipes) as server:
        asked: Any = server.stdin
        answered: Any = server.stdout

        def ran(module: str, how: str, *arguments: str) -> Ran:
            if module in {"numpy", "torch"} or not hasattr(os, "fork"):
                return run(module, how, *arguments)
            code = PROGRAM.format(module=module, breaks=BREAKS[how])
            with tempfile.TemporaryDirectory() as folder:
                files = Path(folder, "out"), Path(folder, "err")
                asked.write(json.dumps([code, arguments, *map(str, files)]) + "\n")
                asked.flush()
                exit_code = int(answered.readline())
                return Ran(arguments, exit_code, *(path.read_text("utf-8") for path in files))

        yield ran


@pytest.mark.parametrize(("module", "how"), BROKEN)
def test_info_says_what_is_broken(run_anywhere: Callable[..., Ran], module: str, how: str) -> None:
    done = run_anywhere(module, how, "info", "--json")
    assert done.returncode == 0, done.stderr
    information = json.loads(done.stdout)
    own = [p for p in information["problems"] if p.startswith(f"{module} cannot be imported: ")]
    assert len(own) == 1, information["problems"]
    package = "pip install -e ." if module.startswith("dkn_engine") else f"reinstall {module}"
    assert package in own[0].rpartition("; to mend it: ")[2]


@pytest.mark.parametrize(("module", "how"), BROKEN)
def test_a_run_of_a_broken_installation_is_one_line(
    run_anywhere: Callable[..., Ran], module: str, how: str, tmp_path: Path
) -> None:
    """It is said before anything else is done, such as loading the model."""
    asked = ["--model", "demo", "--facts", "demo", "--limit", "1", "--out", str(tmp_path / "run")]
    done = run_anywhere(module, how, "find", *asked)
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("dkn-engine: error: the installation is broken: ")
    assert module.rpartition(".")[2] in line
    assert line.endswith("(see dkn-engine info)")


@pytest.mark.parametrize(
    ("asked", "module"), [("clusterers", "pyarrow"), ("sharing", "scipy"), ("all", "pyarrow")]
)
def test_analyses_say_it_before_they_load_a_model(
    run_anywhere: Callable[..., Ran], asked: str, module: str, tmp_path: Path
) -> None:
    """Of what the engine's own modules import only when it is used."""
    facts = ["--facts", "demo", "--limit", "1", "--out", str(tmp_path / "analyses")]
    models = "--models" if asked == "all" else "--model"
    done = run_anywhere(module, "absent", "analyze", asked, models, "demo", *facts)
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("dkn-engine: error: the installation is broken: ")
    assert not (tmp_path / "analyses").exists()


def test_a_report_of_a_broken_installation_is_one_line(tmp_path: Path) -> None:
    done = run("numpy", "absent", "report", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "dkn-engine: error: the installation is broken: No module named 'numpy' "
        "(see dkn-engine info)"
    ]


def test_an_import_of_the_engines_own_that_fails_is_a_fault_of_the_engine() -> None:
    done = run("dkn_engine.cli.settings", "absent", "info")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_whole_installation_has_no_problems() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dkn_engine", "info", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["problems"] == []
