"""A page of sections: one file that needs nothing else, on paper, on a phone, in the dark."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from dkn_engine.report.content import Section, Tile
from dkn_engine.report.html.markup import Markup, escape
from dkn_engine.report.html.pictures import render_picture
from dkn_engine.report.html.tables import render_table

_FEWEST_FOR_CONTENTS = 3


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """A whole HTML document.

    A content security policy forbids it to load anything and to run any script but its own.

    Args:
        title: the one heading of the first level.
        subtitle: below it, such as the model and the date.
        sections: in order, each under a heading of the second level.
    """
    names = _anchors([section.title for section in sections])
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        '<link rel="icon" href="data:,">',
        f"<style>\n{_part('page.css')}</style>",
        "</head>",
        "<body>",
        f"<header>\n<h1>{escape(title)}</h1>",
        f'<p class="subtitle">{escape(subtitle)}</p>\n</header>',
    ]
    if len(sections) >= _FEWEST_FOR_CONTENTS:
        links = "\n".join(
            f'<li><a href="#{name}">{escape(section.title)}</a></li>'
            for name, section in zip(names, sections, strict=True)
        )
        lines.append(f'<nav aria-label="Contents">\n<ul>\n{links}\n</ul>\n</nav>')
    lines.append("<main>")
    for number, (name, section) in enumerate(zip(names, sections, strict=True), 1):
        lines.append(render_section(section, name, f"figure-{number}"))
    lines += ["</main>", f"<script>{_part('page.js')}</script>", "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def render_section(section: Section, anchor: str, prefix: str) -> Markup:
    """One section.

    Args:
        section: to be rendered.
        anchor: its identifier in the page.
        prefix: of the identifiers in its figures.
    """
    lines = [f'<section id="{anchor}">', f"<h2>{escape(section.title)}</h2>"]
    lines += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text]
    if section.tiles:
        lines.append(_tiles(section.tiles))
    pictures = [
        render_picture(picture, f"{prefix}-{i}-") for i, picture in enumerate(section.pictures, 1)
    ]
    if pictures:
        lines += ['<div class="pictures">', *pictures, "</div>"]
    lines += [render_table(table) for table in section.tables]
    lines += [section.body] if section.body else []
    return Markup("\n".join([*lines, "</section>"]))


def _tiles(tiles: Sequence[Tile]) -> str:
    items = "\n".join(
        f"<div><dt>{escape(tile.label)}</dt><dd>{escape(tile.value)}"
        f"{f'<small>{escape(tile.note)}</small>' if tile.note else ''}</dd></div>"
        for tile in tiles
    )
    return f'<dl class="tiles">\n{items}\n</dl>'


def _anchors(titles: Sequence[str]) -> list[str]:
    """Identifiers from titles, equal titles numbered."""
    found: dict[str, None] = {}
    for title in titles:
        base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        name, number = base, 1
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found[name] = None
    return list(found)


@cache
def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_part("page.js").encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
