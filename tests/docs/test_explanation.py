"""What CONTRIBUTING and the explanations name is where they say it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs/explanation").glob("*.md"))]
ARCHITECTURE = ROOT / "docs/explanation/architecture.md"


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links() -> list[tuple[Path, str]]:
    found = [(p, link) for p in PAGES for link in re.findall(r"\]\(([^)#]+)\)", text(p))]
    assert len(found) > 20
    return [(p, link) for p, link in found if "://" not in link]


@pytest.mark.parametrize(("page", "link"), links(), ids=lambda x: str(x).rpartition("/")[2])
def test_links_lead_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


def named() -> set[str]:
    """Paths of files that CONTRIBUTING names, but for those that are to be written."""
    pattern = r"`((?:dkn_engine|tests|benchmarks|docs|csrc|\.github)/[\w/.]+)`"
    found = set(re.findall(pattern, text(ROOT / "CONTRIBUTING.md")))
    assert len(found) > 20
    return {path for path in found if "NAME" not in path}


@pytest.mark.parametrize("path", sorted(named()))
def test_files_that_are_named_exist(path: str) -> None:
    assert (ROOT / path).exists()


def names_in_files() -> list[tuple[str, str]]:
    """Names in capitals or with an underscore that a step says are in a file of its own."""
    steps = re.split(r"\n(?=\d\. |\n|### )", text(ROOT / "CONTRIBUTING.md"))
    found = []
    for step in steps:
        files = re.findall(r"`(dkn_engine/[\w/]+\.py)`", step)
        names = re.findall(r"`(_?[A-Z][A-Z_]+|_[a-z_]+)`", step)
        if files:
            found += [(name, " ".join(files)) for name in names if name not in {"NAME"}]
    return found


@pytest.mark.parametrize(("name", "files"), names_in_files())
def test_tables_that_a_step_names_are_in_one_of_its_files(name: str, files: str) -> None:
    assert any(re.search(rf"\b{name}\b", text(ROOT / file)) for file in files.split())


def test_the_tree_is_the_packages() -> None:
    """In the architecture's order, everything that stands in the root of the package."""
    block = re.search(r"```\ndkn_engine/\n(.*?)\ncsrc/", text(ARCHITECTURE), re.DOTALL)
    assert block is not None
    shown = set(re.findall(r"^[├└]── ([\w.]+)", block[1], re.MULTILINE))
    package = ROOT / "dkn_engine"
    root = {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    folders = {p.name for p in package.iterdir() if (p / "__init__.py").exists()}
    assert shown == root | (folders - {"compat"})


def test_a_fact_goes_ten_steps_each_one_file() -> None:
    table = text(ARCHITECTURE).partition("### Before and after")[0]
    steps = re.findall(r"^\| (\d+) \|.*?\]\(\.\./\.\./([\w/.]+)\)", table, re.MULTILINE)
    assert [int(n) for n, _ in steps] == list(range(1, 11))
    assert len({path for _, path in steps}) == 10


def test_old_files_of_the_comparison_are_gone_or_the_same() -> None:
    """Every pair of the table: a file that moved no longer stands where it did."""
    rows = re.findall(
        r"^\| \d+ \| [\w ]+ \| `([\w/.]+)`[^|]* \| `([\w/.]+)`",
        text(ARCHITECTURE),
        re.MULTILINE,
    )
    assert len(rows) == 10
    for before, after in rows:
        assert (ROOT / "dkn_engine" / after).exists()
        if before != after and not before.endswith("__init__.py"):
            assert not (ROOT / "dkn_engine" / before).exists()
