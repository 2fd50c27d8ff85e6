"""Links that leave docs/: pages of the root become pages of the site, other files are copied.

Pages link to files and folders as a reader of the repository needs it. The sources have no public
home, so on the site a link to a file is a download (MyST's own doing) and one to a folder its text.
docs/example is copied as it stands, since its pages need one another.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {"README.md": "index", "CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}
_LINK = re.compile(r"(?<!!)\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def of_the_site(text: str, docname: str, folder: Path) -> str:
    """A page's links as the site needs them.

    Args:
        text: Markdown.
        docname: of the page on the site, such as ``howto/gpu``.
        folder: that the links of the text are relative to.
    """

    def link(found: re.Match[str]) -> str:
        words, target, fragment = found[1], found[2], found[3] or ""
        path = (folder / target).resolve()
        if path.is_dir():
            return words
        if not path.is_relative_to(ROOT):
            return found[0]  # Sphinx says that there is no such page.
        up = "../" * docname.count("/")
        page = PAGES.get(str(path.relative_to(ROOT)))
        if page:
            return f"[{words}]({up}{page}.md{fragment if page != 'index' else ''})"
        if path.is_relative_to(DOCS / "example"):
            return f'<a href="{up}{path.relative_to(DOCS)}">{words}</a>'
        if path.is_relative_to(DOCS):
            return f"[{words}]({up}{path.relative_to(DOCS)}{fragment})"
        return found[0] if folder != ROOT else f"[{words}]({up}../{target})"

    return _LINK.sub(link, text)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Rewrite what was read; a page that stands for one of the root is that one."""
    folder = DOCS / Path(docname).parent
    for file, page in PAGES.items():
        if docname == page != "index":
            app.env.note_dependency(ROOT / file)
            source[0], folder = (ROOT / file).read_text(encoding="utf-8"), ROOT
    if app.env.doc2path(docname).suffix == ".md":
        source[0] = of_the_site(source[0], docname, folder)


def copy_example(app: Sphinx, error: Exception | None) -> None:
    """The report that ``make report`` made, beside the pages."""
    if error is None and app.builder.name == "html":
        shutil.copytree(DOCS / "example", Path(app.outdir) / "example", dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", read)
    app.connect("build-finished", copy_example)
    return {"parallel_read_safe": True}
