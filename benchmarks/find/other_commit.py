"""The engine of another commit in a folder of its own, beside this tree's in one measurement."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ("csrc", "CMakeLists.txt", "setup.py")


def tree_of(commit: str, folder: Path, *, root: Path = ROOT) -> Path:
    """Put the files of ``commit`` into ``folder`` with the compiled core that they need.

    This tree's extension is copied if its sources are the commit's; otherwise it is built there.

    Raises:
        SystemExit: git does not know the commit.
    """
    done = subprocess.run(["git", "archive", commit], cwd=root, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise SystemExit(f"no files of commit {commit!r}: {reason[0] if reason else 'git failed'}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    same = subprocess.run(["git", "diff", "--quiet", commit, "--", *NATIVE], cwd=root, check=False)
    built = sorted((root / "dkn_engine").glob("_native*.so"))
    if same.returncode == 0 and built:
        for one in built:
            shutil.copy(one, folder / "dkn_engine")
    else:
        build(folder)
    return folder


def build(folder: Path) -> None:
    """Compile the core of a tree that has no history."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "SETUPTOOLS_SCM_PRETEND_VERSION": "0.0"},
        check=True,
    )
