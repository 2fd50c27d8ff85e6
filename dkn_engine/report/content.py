"""What a report says, as data: made once, then rendered as text, as Markdown and as a page."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dkn_engine.statistics.words import DASH


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text; a ``note`` is set smaller or dimmer."""

    text: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Points:
    """Sentences that stand for themselves, one below another."""

    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading below that of the section."""

    text: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure: its name, its value, and a note such as its interval."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Headline figures beside one another."""

    tiles: Sequence[Tile]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        number: set flush right and never broken.
        short: its heading in a terminal, where there is less room.
        least: columns of a terminal below which a cell is not broken.
        one_line: cut by a terminal, rather than broken into lines.
    """

    name: str
    number: bool = False
    short: str = ""
    least: int = 20  # A mean with its interval stays whole.
    one_line: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A cell that leads to another file of the same folder; ``href`` is relative."""

    text: str
    href: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns, of which the first names the rows.

    Attributes:
        columns: a name alone is a column of text.
        rows: text, numbers, links or None for an empty cell; as many as there are columns.
        caption: what the table shows.
        controls: rows that are controls, by index; they are set apart.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    controls: Collection[int] = ()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {i} must have {len(self.columns)} cells, as the columns; got {len(row)}"
                )

    @property
    def head(self) -> list[Column]:
        """The columns, all as such."""
        return [Column(c) if isinstance(c, str) else c for c in self.columns]

    @property
    def cells(self) -> list[list[str | Link]]:
        """The rows as text and links."""
        return [[v if isinstance(v, Link) else cell_text(v) for v in row] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing.

    Attributes:
        svg: a document, as ``figures.to_svg`` makes it.
        alt: what it shows, for those who do not see it.
        caption: below it.
    """

    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Drawings beside one another; text has their alternative."""

    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class Item:
    """A named value of a card; a ``long`` one has a line of its own."""

    name: str
    text: str
    long: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """All about one fact; a page shows its first line and opens the rest.

    Attributes:
        number: of the fact in the run, from 1; unique in the page.
        kind, badge: what was found, as a key of ``Cards.kinds`` and in a few characters.
        prompt, answer: first line; without both, ``name`` is.
        name: the fact's identifier.
        chance: the answer's probability.
        about: more words by which the card is found.
        items: the fact and its figures by name.
        blocks: what was measured.
    """

    number: int
    kind: str
    badge: str
    prompt: str
    answer: str
    name: str
    chance: str
    about: str
    items: Sequence[Item]
    blocks: Sequence[Block] = ()


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards of facts, with a bar to find them by their ``kinds``; only a page has room for them."""

    cards: Sequence[Card]
    kinds: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fold:
    """What only a page holds, closed until it is asked for: blocks, or ``code`` as it stands."""

    title: str
    blocks: Sequence[Block] = ()
    code: str = ""


Block = Paragraph | Points | Heading | Tiles | Table | Figures | Cards | Fold


@dataclass(frozen=True, slots=True)
class Section:
    """A part under its own heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report.

    Attributes:
        title: its one heading of the first level.
        subtitle: below it, such as the model and the date.
        sections: in order.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]


def number(name: str, short: str = "") -> Column:
    """A column of numbers."""
    return Column(name, number=True, short=short)


def paragraphs(texts: Sequence[str], *, note: bool = False) -> list[Paragraph]:
    """Texts as blocks; empty ones are left out."""
    return [Paragraph(text, note) for text in texts if text]


def cell_text(value: object) -> str:
    """A cell's text: three significant digits of a float, a dash for one that is not finite."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return DASH
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)
