"""A build where there is no compiler ends with one line that says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(os.name == "nt", reason="its compiler is on no path")
@pytest.mark.parametrize("named", ["", "no-such-compiler -O2"])
def test_a_build_without_a_compiler_says_what_to_install(named: str, tmp_path: Path) -> None:
    pytest.importorskip("pybind11")
    command = ["setup.py", "-q", "build_ext", "-b", str(tmp_path), "-t", str(tmp_path)]
    # A virtual environment's own folder is looked in, too; it holds no compiler.
    environment = {**os.environ, "PATH": str(tmp_path)} | ({"CXX": named} if named else {})
    environment = {k: v for k, v in environment.items() if named or k != "CXX"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: dkn_engine needs a C++17 compiler: apt install g++")
    assert ("CXX is 'no-such-compiler'" in last) == bool(named)
    assert "cmake" not in done.stdout + done.stderr.lower().replace(last.lower(), "")
