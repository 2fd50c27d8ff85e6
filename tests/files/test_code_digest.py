"""The digest of the engine's own code: what changes it and what does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dkn_engine
from dkn_engine.files.code_digest import code_digest

PACKAGE = Path(dkn_engine.__file__).parent
NOT_CODE = shutil.ignore_patterns("__pycache__")
ASK = "from dkn_engine.files.code_digest import code_digest; print(code_digest())"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "dkn_engine", ignore=NOT_CODE)
    return tmp_path / "dkn_engine"


def digest(package: Path) -> str:
    """As a process says that imports this copy, whatever is installed."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", ASK],
        cwd=package.parent,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_copy_of_the_code_has_the_same_digest(copy: Path) -> None:
    assert digest(copy) == code_digest()
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "x.pyc").write_bytes(b"anything")
    assert digest(copy) == code_digest()


@pytest.mark.parametrize(
    "name", ["analysis/neuron_groups.py", "facts/packaged/demo_new.jsonl", "_native"]
)
def test_every_part_of_the_code_counts(copy: Path, name: str) -> None:
    (path,) = (p for p in copy.glob(f"{name}*") if p.suffix != ".pyi")
    with path.open("ab") as file:
        file.write(b"\n")
    assert digest(copy) != code_digest()


def test_a_file_more_or_less_counts(copy: Path) -> None:
    (copy / "analysis" / "extra.py").touch()
    more = digest(copy)
    (copy / "analysis" / "extra.py").rename(copy / "extra.py")
    moved = digest(copy)
    (copy / "extra.py").unlink()
    next(copy.glob("_native*.so")).unlink()
    assert len({more, moved, digest(copy), code_digest()}) == 4
