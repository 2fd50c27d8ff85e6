"""What makes the site of the pages: its links, and the parts that are written from the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dkn_engine.cli.list_settings import all_settings
from docs._site import check_links, files, generated

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("docname", "folder", "text", "expected"),
    [
        ("a", DOCS, "[x](scale.md#b)", "[x](scale.md#b)"),
        ("howto/a", DOCS / "howto", "[x](../scale.md)", "[x](../scale.md)"),
        ("a", DOCS, "[x](../README.md#limits)", "[x](index.md)"),
        ("howto/a", DOCS / "howto", "[x](../../CHANGELOG.md#y)", "[x](../changelog.md#y)"),
        ("a", DOCS, "[the `x`](../tests)", "the `x`"),
        ("a", DOCS, "[x](../Makefile)", "[x](../Makefile)"),
        ("a", DOCS, "[x](example/report.html)", '<a href="example/report.html">x</a>'),
        ("changelog", ROOT, "[x](docs/scale.md)", "[x](scale.md)"),
        ("changelog", ROOT, "[x](Makefile)", "[x](../Makefile)"),
        ("a", DOCS, "[x](https://x.org/a)", "[x](https://x.org/a)"),
        ("a", DOCS, "![x](pictures/a.png)", "![x](pictures/a.png)"),
    ],
)
def test_links_as_the_site_needs_them(docname: str, folder: Path, text: str, expected: str) -> None:
    assert files.of_the_site(f"see {text}.", docname, folder) == f"see {expected}."


def test_every_page_is_in_the_index_once() -> None:
    """The contents of index.md are the pages there are."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^[\w/]+$", "".join(re.findall(r"```{toctree}(.*?)```", index, re.S)), re.M
    )
    assert len(set(listed)) == len(listed)
    pages = [p.relative_to(DOCS) for p in DOCS.rglob("*.md")]
    below = {"howto", "example", "reference", "gallery", "pictures"}
    there = {str(p.with_suffix("")) for p in pages if p.parts[0] not in below} - {"index"}
    assert there <= set(listed)


def test_every_setting_has_a_row_of_three_cells() -> None:
    rows = [line for line in generated.settings().splitlines() if line.startswith("| `")]
    assert len(rows) == len(all_settings()) > 60
    for row, setting in zip(rows, all_settings(), strict=True):
        assert row.startswith(f"| `{setting.key}` | `")
        assert len(re.findall(r"(?<!\\)\|", row)) == 4
        assert not row.endswith("|  |")


def test_every_command_has_its_help() -> None:
    text = generated.commands()
    for command in ("find", "analyze", "analyze robustness", "merge", "settings"):
        assert f"usage: dkn-engine {command} " in text


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    page = '<a id="here"></a><a href="b/c.html#there"></a><a href="#here"></a>'
    (tmp_path / "a.html").write_text(page + '<a href="https://x.org/y"></a>', encoding="utf-8")
    other = '<p id="there"><img src="../a.html"><a href="../a.html#here"></a>'
    (tmp_path / "b/c.html").write_text(other, encoding="utf-8")
    assert check_links.dead_links(tmp_path) == []
    more = '<a href="none.html"></a><a href="../a.html#none"></a><img src="x.png">'
    (tmp_path / "b/c.html").write_text(other + more, encoding="utf-8")
    assert check_links.dead_links(tmp_path) == [
        "b/c.html: ../a.html#none",
        "b/c.html: none.html",
        "b/c.html: x.png",
    ]
