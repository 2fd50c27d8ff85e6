"""The distributions hold what a build needs, and what is built runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dkn_engine"
NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__"
)


def run(*command: str | Path, cwd: Path) -> str:
    # What the tests run with was compiled with optimisation; here that would only take longer.
    env = {**os.environ, "DKN_BUILD_TYPE": "Debug"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # From a copy, because building leaves metadata beside the sources.
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_COPIED)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation"]
    run(*command, "--outdir", folder, cwd=folder / "tree")
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run(*command, "--outdir", folder, cwd=tree)
    (built,) = folder.glob("*.whl")
    return built


def test_sdist_holds_the_sources_of_the_extension(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.?pp")}
    assert sources
    assert names >= sources | {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE"}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_holds_the_package_its_types_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"dkn_engine/py.typed", "dkn_engine/_native.pyi"} <= names
    kinds = ("*.jsonl", "*.css", "*.js", "*.jinja", "*.html")
    data = {str(p.relative_to(ROOT)) for kind in kinds for p in PACKAGE.rglob(kind)}
    assert len(data) > 5
    assert data <= names
    modules = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*.py")}
    assert modules <= names
    others = {name.split("/")[0] for name in names} - {"dkn_engine"}
    assert all(name.endswith(".dist-info") for name in others), others


def test_extension_of_the_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from dkn_engine import _native, topology\n"
        f"assert _native.__file__.startswith({str(tmp_path)!r}), _native.__file__\n"
        "print(topology.h0_persistence([[0, 2], [2, 0]]).heights.tolist())"
    )
    assert run(sys.executable, "-P", "-c", code, cwd=tmp_path).strip() == "[2.0]"


def test_command_line_program_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "dkn-engine = dkn_engine.__main__:main" in archive.read(name).decode()
