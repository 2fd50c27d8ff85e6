"""The version names the commit, in every form in which the sources travel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dkn_engine.run import build_info

pytest.importorskip("setuptools_scm")

# What decides about the version, in a repository of its own so that its commits and tags are known.
ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", ".git_archival.txt", ".gitattributes", "README.md", "LICENSE")
FALLBACK = "0.1.0.dev0"
ASK = "from setuptools.build_meta import build_sdist; build_sdist('.')"


def git(folder: Path, *command: str) -> str:
    names = ("-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *names, *command], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def built(folder: Path) -> str:
    """The version that a build has there."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    archive.rename(folder / "sdist")
    return archive.name.removeprefix("dkn_engine-").removesuffix(".tar.gz")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits without a tag."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "repository"
    (folder / "dkn_engine").mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "dkn_engine/__init__.py").touch()
    (folder / ".gitignore").write_text("*.egg-info\nsdist\n*.tar.gz\n")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    git(folder, "commit", "-q", "--allow-empty", "-m", "two")
    return folder


def archive_of(repository: Path, into: Path) -> Path:
    git(repository, "archive", "-o", str(into / "archive.tar"), "HEAD")
    with tarfile.open(into / "archive.tar") as archive:
        archive.extractall(into / "archive", filter="data")
    return into / "archive"


def commit(repository: Path) -> str:
    return git(repository, "rev-parse", "--short=9", "HEAD")


def test_before_the_first_tag_commits_are_counted(repository: Path, tmp_path: Path) -> None:
    assert built(repository) == f"0.1.0.dev2+g{commit(repository)}"
    assert built(archive_of(repository, tmp_path)) == FALLBACK


def test_a_tag_is_the_version_and_what_follows_is_the_next_minor_one(
    repository: Path, tmp_path: Path
) -> None:
    git(repository, "tag", "v0.1.0")
    assert built(repository) == "0.1.0"
    git(repository, "commit", "-q", "--allow-empty", "-m", "three")
    assert built(repository) == f"0.2.0.dev1+g{commit(repository)}"
    archived = re.fullmatch(r"0\.2\.0\.dev1\+g(.+)", built(archive_of(repository, tmp_path)))
    assert archived is not None
    assert commit(repository).startswith(archived[1])
    git(repository, "checkout", "-q", "-b", "v0.1")
    assert built(repository) == f"0.1.1.dev1+g{commit(repository)}"


def test_a_shallow_clone_knows_its_commit(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", repository.as_uri(), "shallow")
    assert built(tmp_path / "shallow") == f"0.1.0.dev1+g{commit(repository)}"


def test_an_sdist_keeps_the_version_that_it_was_built_with(
    repository: Path, tmp_path: Path
) -> None:
    version = built(repository)
    with tarfile.open(repository / "sdist") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    assert built(tree) == version != FALLBACK


def test_sources_alone_have_the_fallback_unless_told(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(repository / ".git")
    (repository / ".git_archival.txt").unlink()
    assert built(repository) == FALLBACK
    monkeypatch.setenv("SETUPTOOLS_SCM_PRETEND_VERSION", "7.8.9")
    assert built(repository) == "7.8.9"


def test_a_checkout_says_what_it_is_now_and_not_what_was_installed(repository: Path) -> None:
    assert build_info._version_of_checkout(repository) == built(repository)
    before = built(repository)
    git(repository, "commit", "-q", "--allow-empty", "-m", "three")
    now = build_info._version_of_checkout(repository)
    assert now == f"0.1.0.dev3+g{commit(repository)}" != before


def test_a_checkout_that_cannot_be_asked_is_unknown(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(repository / ".git")
    (repository / ".git").mkdir()
    assert build_info._version_of_checkout(repository) == "0+unknown"
    monkeypatch.setitem(sys.modules, "setuptools_scm", None)
    assert build_info._version_of_checkout(ROOT) == "0+unknown"
