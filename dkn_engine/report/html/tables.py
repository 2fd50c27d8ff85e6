"""Tables as HTML, each in a box of its own that scrolls on narrow screens, below its caption."""

from __future__ import annotations

import math
import re

from dkn_engine.report.content import HtmlTable
from dkn_engine.report.html.markup import Markup, escape
from dkn_engine.statistics.words import DASH

_LONG = 40  # characters of a cell, from where its text is broken into lines
_NUMBER = re.compile(r"[-+−<(]?\.?\d")


def render_table(table: HtmlTable) -> Markup:
    """The table; columns of numbers are set flush right.

    Raises:
        ValueError: a row has more or fewer cells than the header.
    """
    for i, row in enumerate(table.rows):
        if len(row) != len(table.header):
            raise ValueError(
                f"row {i} must have {len(table.header)} cells, as the header; got {len(row)}"
            )
    cells = [[cell_text(value) for value in row] for row in table.rows]
    right = [_is_numeric([row[j] for row in cells]) for j in range(len(table.header))]
    lines = [
        '<div class="table">',
        *([f'<p class="caption">{escape(table.caption)}</p>'] if table.caption else []),
        f'<div class="scroll" tabindex="0" role="group" aria-label="{_name(table)}">',
        "<table>",
    ]
    head = "".join(
        f'<th scope="col"{_side(at_right)}>{escape(name)}</th>'
        for name, at_right in zip(table.header, right, strict=True)
    )
    lines += [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for i, row in enumerate(cells):
        kind = ' class="control"' if i in table.controls else ""
        first, *rest = (
            f"{_side(at_right, len(cell) > _LONG)}>{cell}"
            for cell, at_right in zip(row, right, strict=True)
        )
        others = "".join(f"<td{cell}</td>" for cell in rest)
        lines.append(f'<tr{kind}><th scope="row"{first}</th>{others}</tr>')
    lines += ["</tbody>", "</table>", "</div>", "</div>"]
    return Markup("\n".join(lines))


def cell_text(value: object) -> Markup:
    """A cell's HTML: three significant digits of a float, a dash for one that is not finite."""
    if isinstance(value, float):
        return Markup(_float(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return Markup(f"{value:,}")
    return escape(value)


def _float(value: float) -> str:
    if not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _name(table: HtmlTable) -> Markup:
    return escape(f"Table: {table.caption or ', '.join(table.header)}")


def _side(right: bool, long: bool = False) -> str:
    return ' class="number"' if right else ' class="wide"' if long else ""


def _is_numeric(cells: list[Markup]) -> bool:
    there = [cell for cell in cells if cell]
    return bool(there) and all(cell == DASH or _NUMBER.match(cell) for cell in there)
