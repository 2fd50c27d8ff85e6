"""Figures as SVG and PNG whose bytes depend on the figure alone."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dkn_engine.files.atomic import write_files
from dkn_engine.files.local_paths import local_path
from dkn_engine.report.figures.style import PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(url\(#|href="#)([^)"]+)')
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)


def to_svg(figure: Figure) -> str:
    """The figure as an SVG document.

    matplotlib makes up identifiers anew each time unless a global setting says otherwise; they
    are numbered here instead.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", dpi=DPI, facecolor=PAPER, transparent=False, metadata={"Date": None}
    )
    return renamed(_METADATA.sub("", buffer.getvalue()), "i")


def renamed(svg: str, prefix: str) -> str:
    """SVG with its identifiers numbered behind a prefix, each reference following its own."""
    names = {old: f"{prefix}{i}" for i, old in enumerate(dict.fromkeys(_ID.findall(svg)), 1)}
    svg = _ID.sub(lambda m: f'id="{names[m[1]]}"', svg)
    return _REFERENCE.sub(lambda m: f"{m[1]}{names.get(m[2], m[2])}", svg)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file's contents, 200 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="png",
        dpi=DPI,
        facecolor=PAPER,
        transparent=False,
        metadata={"Software": None},
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
