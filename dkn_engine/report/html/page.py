"""A report as a page: one file that needs nothing else, on paper, on a phone, in the dark."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import quote

from dkn_engine.report.clean import clean
from dkn_engine.report.content import Block, Report

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_WIDTH = re.compile(r'<svg\b[^>]*?\bwidth="([\d.]+)pt"')
_POINTS_A_REM = 12.0
# What a data URI holds as it is, in an attribute that is quoted by apostrophes. All but %, #, & and
# the apostrophe: a path that begins with no slash has no other signs of its own.
_PLAIN = ' !"$()*+,-./:;<=>?@[\\]^_`{|}~'


def render_page(report: Report) -> str:
    """A whole HTML document.

    A content security policy forbids it to load anything and to run any script but its own.

    Raises:
        ValueError: a figure's ``svg`` is none.
    """
    anchors = _anchors([section.title for section in report.sections])
    script = _part("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            sections=list(zip(anchors, report.sections, strict=True)),
            style=_part("page.css"),
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def render_blocks(blocks: Sequence[Block]) -> str:
    """Blocks as a piece of HTML, without the page's style and script."""
    show = _environment().get_template("blocks.html.j2").module.show  # type: ignore[attr-defined]
    return "".join(map(str, map(show, blocks)))


@cache
def _environment() -> Environment:
    """Templates whose every text is cleaned of control characters, then escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("dkn_engine.report.html", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda v: clean(v) if isinstance(v, str) and not isinstance(v, Markup) else v,
    )
    environment.filters |= {"data_uri": _data_uri, "width_in_rem": _width_in_rem}
    environment.filters["verbatim"] = escape  # Line breaks stay.
    environment.filters["kind_of_block"] = lambda block: type(block).__name__.lower()
    return environment


def _data_uri(svg: str) -> Markup:
    """An image of its own, whose identifiers meet no others, for an attribute in apostrophes."""
    from markupsafe import Markup

    return Markup(f"data:image/svg+xml,{quote(svg, safe=_PLAIN)}")


def _width_in_rem(svg: str) -> str:
    found = _WIDTH.search(svg)
    if found is None:
        raise ValueError(f"svg must be an SVG document with a width; got {svg[:40]!r}")
    return f"{float(found[1]) / _POINTS_A_REM:.1f}"


def _anchors(titles: Sequence[str]) -> list[str]:
    """Identifiers from titles, equal titles numbered."""
    names: dict[str, None] = {}
    for title in titles:
        base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        name, place = base, 1
        while name in names:
            place += 1
            name = f"{base}-{place}"
        names[name] = None
    return list(names)


@cache
def _part(name: str) -> Markup:
    """A file of the package that goes into the page as it is."""
    from markupsafe import Markup

    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
