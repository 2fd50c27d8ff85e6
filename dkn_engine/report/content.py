"""What a page is made of, before it is HTML."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dkn_engine.report.html.markup import Markup


@dataclass(frozen=True, slots=True)
class HtmlTable:
    """A table: text and numbers, escaped when rendered.

    Attributes:
        header: names of the columns; the first column names the rows.
        rows: as many cells each; None is an empty cell, :class:`Markup` stays as it is.
        caption: what the table shows.
        controls: rows that are controls, by index; they are set apart.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    controls: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure to be inlined.

    Attributes:
        svg: a document, as ``figures.to_svg`` makes it.
        alt: what it shows, for those who do not see it.
        caption: below it.
    """

    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure: its name, its value, and a note such as its interval."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under its own heading, in the order of its fields.

    Attributes:
        title: the heading.
        text: paragraphs.
        tiles: headline figures.
        pictures: figures.
        tables: tables.
        body: HTML below all that.
    """

    title: str
    text: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[HtmlTable] = ()
    body: Markup | None = None
