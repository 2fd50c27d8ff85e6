"""What the program says where something that it needs is not there, or not as it should be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
from dkn_engine.__main__ import main
sys.exit(main())
"""


def run(module: str, how: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = PROGRAM.format(module=module, breaks=BREAKS[how])
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("module", "how"), BROKEN)
def test_info_says_what_is_broken(module: str, how: str) -> None:
    done = run(module, how, "info", "--json")
    assert done.returncode == 0, done.stderr
    information = json.loads(done.stdout)
    own = [p for p in information["problems"] if p.startswith(f"{module} cannot be imported: ")]
    assert len(own) == 1, information["problems"]
    package = "pip install -e ." if module.startswith("dkn_engine") else f"reinstall {module}"
    assert package in own[0].rpartition("; to mend it: ")[2]


@pytest.mark.parametrize(("module", "how"), BROKEN)
def test_a_run_of_a_broken_installation_is_one_line(module: str, how: str, tmp_path: Path) -> None:
    """It is said before anything else is done, such as loading the model."""
    asked = ["--model", "demo", "--facts", "demo", "--limit", "1", "--out", str(tmp_path / "run")]
    done = run(module, how, "find", *asked)
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("dkn-engine: error: the installation is broken: ")
    assert module.rpartition(".")[2] in line
    assert line.endswith("(see dkn-engine info)")


@pytest.mark.parametrize(
    ("asked", "module"), [("clusterers", "pyarrow"), ("sharing", "scipy"), ("all", "pyarrow")]
)
def test_analyses_say_it_before_they_load_a_model(asked: str, module: str, tmp_path: Path) -> None:
    """Of what the engine's own modules import only when it is used."""
    facts = ["--facts", "demo", "--limit", "1", "--out", str(tmp_path / "analyses")]
    models = "--models" if asked == "all" else "--model"
    done = run(module, "absent", "analyze", asked, models, "demo", *facts)
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
