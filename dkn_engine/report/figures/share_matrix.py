"""How much sets of neurons have in common, as a matrix of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dkn_engine.report.figures.style import (
    FONT,
    INK,
    PAPER,
    SMALL,
    WIDTH,
    broken,
    dress,
    literal,
    new_figure,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE = "share of the row's neurons that the column's set also holds"
_HALF = 0.55  # of the scale, from where ink gives way to white
_ONE_LINE = 45  # most letters of all column names that stand beside one another


def overlap(
    shares: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    axis: str = SHARE,
) -> Figure:
    """A matrix of shares, white for none to black for all, with the figures in it.

    Args:
        shares: ``[rows, columns]`` in [0, 1]; one that is not finite is left empty.
        rows, columns: names of the sets; columns None: the same as the rows.
        axis: what a share is.

    Raises:
        ValueError: the matrix has another shape.
    """
    names = rows if columns is None else columns
    figure = new_figure(1.2 + 0.34 * len(rows), max(WIDTH, 1.8 + 0.38 * len(names)))
    draw_overlap(figure.subplots(), shares, rows, names, axis=axis)
    return figure


def draw_overlap(
    axes: Axes, shares: ArrayLike, rows: Sequence[str], names: Sequence[str], *, axis: str = SHARE
) -> None:
    """Draw :func:`overlap` on axes, from whose room the scale takes some."""
    matrix = np.asarray(shares, dtype=np.float64)
    if matrix.shape != (len(rows), len(names)):
        raise ValueError(
            f"shares must be [{len(rows)}, {len(names)}], as the names; got {list(matrix.shape)}"
        )
    edges_x, edges_y = np.arange(len(names) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5
    mesh = axes.pcolormesh(
        edges_x, edges_y, matrix, cmap=shades(), vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.5
    )
    for (i, j), share in np.ndenumerate(matrix):
        axes.text(
            j,
            i,
            f"{share:.0%}" if math.isfinite(share) else "–",
            ha="center",
            va="center",
            fontsize=SMALL,
            color=PAPER if share > _HALF else INK,
        )
    axes.set_xticks(range(len(names)), names)
    if sum(map(len, names)) > _ONE_LINE:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    bar = axes.figure.colorbar(mesh, ax=axes, location="top", shrink=0.7, aspect=40)
    dress(axes)
    axes.tick_params(length=0)
    literal(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar.set_label(broken(axis), fontsize=FONT, color=INK)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=INK, color=INK)
