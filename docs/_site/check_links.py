"""Every link between pages of the built site leads to a file and an anchor that are there.

python docs/_site/check_links.py build/docs
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for every tag."""
        for name, value in attrs:
            if value and name in {"id", "name"}:
                self.anchors.add(value)
            elif value and name in {"href", "src"}:
                self.links.add(value)


def dead_links(site: Path) -> list[str]:
    """Those of every page, as ``page: link``."""
    files = [p.resolve() for p in site.rglob("*.html") if "_static" not in p.parts]
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in files}
    dead = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            to = to / "index.html" if to.is_dir() else to
            lost = to in pages and unquote(parts.fragment) not in pages[to].anchors
            if not to.exists() or lost:
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
    return dead


if __name__ == "__main__":
    found = dead_links(Path(sys.argv[1]))
    sys.stderr.write("".join(f"dead link in {line}\n" for line in found))
    sys.exit(bool(found))
