"""A report for a terminal: as wide as it is, or 80 columns; in colour only where it is wanted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from dkn_engine.report.clean import clean
from dkn_engine.report.content import (
    Block,
    Column,
    Figures,
    Heading,
    Link,
    Paragraph,
    Points,
    Section,
    Table,
    Tiles,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

COLUMNS = 80
_PARAGRAPH = 100  # most columns of running text, that the eye finds the next line
_GAP = 2  # columns between those of a table


def to_text(sections: Sequence[Section], *, width: int | None = None) -> str:
    """Sections as text, ending in a newline; what only a page has room for is left out.

    Args:
        sections: in order; an empty title has no heading.
        width: most columns; None: the terminal's, or 80 if standard output is none. Colours and
            bold letters are there on a terminal alone, and not under ``NO_COLOR``.
    """
    from rich.rule import Rule
    from rich.text import Text

    console = _console(width)
    parts: list[RenderableType] = []
    for section in sections:
        blocks = [part for block in section.blocks for part in _block(block, console.width)]
        if section.title and blocks:
            parts.append(Rule(_text(section.title, "bold"), align="left", style="dim"))
        parts += blocks
    for i, part in enumerate(parts):
        if i:
            console.print()
        is_text = isinstance(part, Text)
        console.print(part, width=min(console.width, _PARAGRAPH) if is_text else None)
    assert isinstance(console.file, StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def _console(width: int | None) -> Console:
    """Writes into memory what standard output can show."""
    from rich.console import Console

    there = Console()
    colors = None if there.no_color else there.color_system
    if width is None:
        is_terminal = sys.stdout is not None and sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal else COLUMNS
    return Console(
        file=StringIO(),
        width=width,
        force_terminal=colors is not None,
        force_jupyter=False,
        color_system=colors,  # type: ignore[arg-type]  # The name that rich gave.
        legacy_windows=False,
        highlight=False,
    )


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(clean(text), style, overflow="fold")


def _block(block: Block, width: int) -> Iterator[RenderableType]:
    if isinstance(block, Paragraph):
        yield _text(block.text, "dim" if block.note else "")
    elif isinstance(block, Heading):
        yield _text(block.text, "bold")
    elif isinstance(block, Points) and block.texts:
        yield _grid(([_text("-"), _text(text)] for text in block.texts), 1)
    elif isinstance(block, Tiles):
        yield _grid(
            ([_text(t.label), _text(t.value, "bold"), _text(t.note, "dim")] for t in block.tiles),
            _GAP,
        )
    elif isinstance(block, Figures):
        yield from (_text(f"Figure: {figure.alt}", "dim") for figure in block.figures)
    elif isinstance(block, Table):
        if block.caption:
            yield _text(block.caption, "italic")
        yield from _tables(block, width)


def _grid(rows: Iterable[Sequence[Text]], gap: int) -> RenderableType:
    """Rows without lines or headings."""
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, gap, 0, 0))
    for row in rows:
        grid.add_row(*row)
    return grid


def _tables(table: Table, width: int) -> Iterator[RenderableType]:
    """The table; if it is too wide, its columns in several, each with the first."""
    cells = [[c.text if isinstance(c, Link) else c for c in row] for row in table.cells]
    cells = [[clean(cell) for cell in row] for row in cells]
    for i in table.controls:
        cells[i][0] = f"  {cells[i][0]}"
    sizes = [_size(c, [row[j] for row in cells]) for j, c in enumerate(table.head)]
    blocks: list[list[int]] = [[0]]
    for j in range(1, len(sizes)):
        least = sum(sizes[k][0] + _GAP for k in blocks[-1]) + sizes[j][0]
        if least > width and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(j)
    for block in blocks:
        columns = [table.head[j] for j in block]
        widths = _fitted([sizes[j] for j in block], width)
        rows = [[row[j] for j in block] for row in cells]
        yield _table(columns, widths, rows, set(table.controls))


def _size(column: Column, cells: Sequence[str]) -> tuple[int, int]:
    """Least and best width of a column."""
    from rich.cells import cell_len

    head = clean(column.short or column.name)
    longest = max((cell_len(word) for word in head.split()), default=1)
    best = max([longest, *map(cell_len, cells)])
    if column.number:
        return best, best
    return min(best, max(longest, column.least)), best


def _fitted(sizes: Sequence[tuple[int, int]], width: int) -> list[int]:
    """Widths of columns that fit together, the widest one losing first."""
    widths = [min(best, width) for _, best in sizes]
    for _ in range(sum(widths) + _GAP * (len(widths) - 1) - width):
        loose = [j for j, (least, _) in enumerate(sizes) if widths[j] > least]
        if not loose:
            break
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths


def _cut(text: str, width: int) -> str:
    """The text in so many columns; of a longer one the middle goes, since ends tell more apart."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    end = (width - 1) // 2
    kept = ""
    for letter in reversed(text):
        if cell_len(letter + kept) > end:
            break
        kept = letter + kept
    return f"{set_cell_size(text, width - 1 - cell_len(kept))}…{kept}"


def _table(
    columns: Sequence[Column],
    widths: Sequence[int],
    rows: Sequence[Sequence[str]],
    controls: set[int],
) -> RenderableType:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0)
    )
    for column, width in zip(columns, widths, strict=True):
        name = clean(column.short or column.name)
        made.add_column(Text(name), width=width, justify="right" if column.number else "left")
    for i, row in enumerate(rows):
        texts = [
            Text(_cut(cell, width) if c.one_line else cell, no_wrap=c.one_line, overflow="fold")
            for c, width, cell in zip(columns, widths, row, strict=True)
        ]
        made.add_row(*texts, style="dim" if i in controls else "")
    return made
