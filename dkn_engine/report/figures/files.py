"""Figures as SVG and PNG whose bytes depend on the figure alone."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dkn_engine.files.atomic import write_files
from dkn_engine.files.local_paths import local_path
from dkn_engine.report.figures.style import PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_PROLOG = re.compile(r"<\?xml.*?\?>|<!DOCTYPE[^>]*>")
_TAG = re.compile(r"<[^<>]*>")
_DECIMALS = re.compile(r"(\d\.\d{3})\d+")
_ZEROS = re.compile(r"(\d)\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)")
_GROUP = re.compile(r'<g id="([^"]+)"')
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^)"]+)')
_BREAK = re.compile(r"\s*\n\s*")
# Uses of one mark after the other, two at least, all of the same style.
_RUN = re.compile(r'<use [^<>]*? (style="[^"]*")/>(?:<use [^<>]*? \1/>)+')
_DRAWING = threading.Lock()
# Letters stay letters: as outlines they would be most of the bytes. Verdana is as wide as DejaVu.
_SVG: dict[Any, Any] = {
    "svg.hashsalt": "dkn_engine",
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
}


def to_svg(figure: Figure) -> str:
    """The figure as an SVG document, with the same identifiers each time."""
    from matplotlib import rc_context

    # Settings can be made for all figures only, and other threads draw, too.
    with _DRAWING, rc_context(_SVG):
        left_out = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        return compact(_saved(figure, "svg", left_out).decode("utf-8"))


def compact(svg: str) -> str:
    """matplotlib's SVG in fewer letters, with the same elements.

    Without prolog, comments, line breaks and names of groups that nothing refers to, to a
    thousandth of a point, and with the style of marks of one kind said once, by a group around
    them. Letters are left as they are.
    """
    svg = _COMMENT.sub("", _PROLOG.sub("", svg))
    svg = _TAG.sub(lambda tag: _ZEROS.sub(r"\1\2", _DECIMALS.sub(r"\1", tag[0])), svg)
    named = set(_REFERENCE.findall(svg))
    svg = _GROUP.sub(lambda group: group[0] if group[1] in named else "<g", svg)
    svg = _BREAK.sub(" ", svg).replace("> <", "><").strip()
    return _RUN.sub(lambda run: f"<g {run[1]}>{run[0].replace(f' {run[1]}', '')}</g>", svg)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file's contents, 200 dots an inch."""
    return _saved(figure, "png", {"Software": None})


def _saved(figure: Figure, form: str, metadata: Mapping[str, None]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format=form, dpi=DPI, facecolor=PAPER, transparent=False, metadata=metadata
    )
    return buffer.getvalue()


def save(figure: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Write ``stem.svg`` and ``stem.png``, atomically; returns both paths.

    Args:
        figure: to be drawn.
        stem: path without a suffix; its folder is made if absent.

    Raises:
        OSError: the folder cannot be written.
    """
    stem = local_path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg, png = f"{stem.name}.svg", f"{stem.name}.png"
    write_files(stem.parent, {svg: to_svg(figure).encode(), png: to_png(figure)})
    return stem.parent / svg, stem.parent / png
