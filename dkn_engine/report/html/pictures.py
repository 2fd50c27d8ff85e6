"""Figures inside a page: SVG that scales, has a text of its own and unique identifiers."""

from __future__ import annotations

import re

from dkn_engine.report.content import Picture
from dkn_engine.report.figures.files import renamed
from dkn_engine.report.html.markup import Markup, escape

_ROOT = re.compile(r"<svg\b([^>]*)>")
_WIDTH = re.compile(r'\bwidth="([\d.]+)pt"')
_NOT_NEEDED = re.compile(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"')
_POINTS_A_REM = 12.0


def render_picture(picture: Picture, prefix: str) -> Markup:
    """A ``figure`` element.

    Args:
        picture: to be inlined.
        prefix: of the identifiers, unique in the page.

    Raises:
        ValueError: ``picture.svg`` holds no SVG.
    """
    start = _ROOT.search(picture.svg)
    if start is None:
        raise ValueError(f"svg must be an SVG document; got {picture.svg[:40]!r}")
    attributes = _NOT_NEEDED.sub("", start[1])
    width = _WIDTH.search(start[1])
    size = f' style="width:{float(width[1]) / _POINTS_A_REM:.1f}rem"' if width else ""
    # What follows the root's tag; before it there is only the prologue of a file of its own.
    inside = renamed(picture.svg[start.end() :].replace("xlink:href", "href"), prefix).strip()
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>\n" if picture.caption else ""
    return Markup(
        f'<figure>\n<div class="scroll" tabindex="0" role="group" '
        f'aria-label="{escape(f"Figure: {picture.caption or picture.alt}")}">\n'
        f'<svg role="img" aria-label="{escape(picture.alt)}"{size}{attributes}>{inside}\n'
        f"</div>\n{caption}</figure>"
    )
