"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from dkn_engine.report.clean import clean
from dkn_engine.report.content import (
    Block,
    Figures,
    Heading,
    Link,
    Paragraph,
    Points,
    Report,
    Table,
    Tiles,
)

# Of brackets only those that make a link.
_SPECIAL = re.compile(r"([\\`*_<>|&~#]|\](?=[(\[:]))")


def to_markdown(report: Report) -> str:
    """The report, ending in a newline; what only a page has room for is left out."""
    lines = [f"# {escape(report.title)}", "", escape(report.subtitle)]
    for section in report.sections:
        parts = [part for block in section.blocks for part in _block(block)]
        if parts:
            lines += ["", f"## {escape(section.title)}"]
        for part in parts:
            lines += ["", *part]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as it stands, on one line, in a Markdown table too."""
    return _SPECIAL.sub(r"\\\1", clean(text))


def _block(block: Block) -> Iterator[list[str]]:
    """Lines of each paragraph, list or table."""
    if isinstance(block, Paragraph):
        yield [escape(block.text)]
    elif isinstance(block, Heading):
        yield [f"### {escape(block.text)}"]
    elif isinstance(block, Points) and block.texts:
        yield [f"- {escape(text)}" for text in block.texts]
    elif isinstance(block, Tiles):
        yield [
            f"- {escape(t.label)}: **{escape(t.value)}**{f' ({escape(t.note)})' if t.note else ''}"
            for t in block.tiles
        ]
    elif isinstance(block, Figures):
        yield from ([f"Figure: {escape(figure.alt)}"] for figure in block.figures)
    elif isinstance(block, Table):
        if block.caption:
            yield [f"{escape(block.caption)}:"]
        yield _table(block)


def _table(table: Table) -> list[str]:
    lines = [
        _line([escape(c.name) for c in table.head]),
        f"|{'|'.join('--:' if c.number else '---' for c in table.head)}|",
    ]
    for i, row in enumerate(table.cells):
        first, *others = map(_cell, row)
        if table.controls:
            first = f"… {first}" if i in table.controls else f"**{first}**"
        lines.append(_line([first, *others]))
    return lines


def _cell(cell: str | Link) -> str:
    if isinstance(cell, Link):
        return f"[{escape(cell.text)}]({quote(cell.href)})"
    return escape(cell)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
