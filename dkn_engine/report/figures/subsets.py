"""How far the answer's probability falls with every subset of components suppressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.report.figures.style import (
    DARK,
    FONT,
    INK,
    LIGHT,
    MOST_VECTORS,
    PAPER,
    RULE,
    SMALL,
    WIDTH,
    dress,
    legend,
    new_figure,
    shades,
)
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXIS = "relative drop of the answer's probability"
_MOST_CELLS_WITH_FIGURES = 64  # drawn cell by cell; more become pixels, so that a file stays small
_MOST_MEMBERS = 12  # of a map: 64 rows of 64 cells
_HALF = 0.55


def subset_map(result: FactResult) -> Figure:
    """A map of all subsets, or dots by size where the subsets were sampled.

    Columns are the subsets of the first half of the components, rows those of the second; the
    filled squares along both edges say which are suppressed. Cells go from white (nothing lost)
    to black (all lost); a plus marks a probability that rose, a frame the subsets of the DKN alone.

    Raises:
        ValueError: the fact has no subsets, or its clean probability is not positive.
    """
    drop = subset_drops(result)
    q = len(result.components)
    if q <= _MOST_MEMBERS and len(drop) == 1 << q:
        return _map(drop, q, result.dkn)
    figure = new_figure(3.0)
    draw_dots(figure.subplots(), result)
    return figure


def has_drops(result: FactResult) -> bool:
    """Whether subsets were measured, and a probability with nothing suppressed that can fall."""
    clean = result.subset_probabilities[result.subset_masks == 0]
    return len(result.subset_masks) > 1 and bool(clean.size and clean[0] > 0)


def subset_drops(result: FactResult) -> NDArray[np.float64]:
    """Relative drops ``[subsets]`` in the order of ``result.subset_masks``.

    Raises:
        ValueError: no subsets, or a clean probability that is not positive.
    """
    clean = result.subset_probabilities[result.subset_masks == 0]
    if not has_drops(result):
        raise ValueError(
            f"fact {result.fact_id!r} needs subsets and a positive probability with nothing "
            f"suppressed; got {clean.tolist() or 'none'}"
        )
    drops: NDArray[np.float64] = 1 - result.subset_probabilities / clean[0]
    return drops


def _map(drop: NDArray[np.float64], q: int, dkn: tuple[int, ...]) -> Figure:
    right = (q + 1) // 2  # components along the columns
    table = drop.reshape(1 << (q - right), 1 << right)
    rows, columns = table.shape
    cell = min(0.5, max(0.07, 3.0 / columns))
    strip = 0.17
    beside = max(0.2, (q - right) * strip)
    figure = new_figure(1.3 + rows * cell * 0.8 + right * strip)
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=[beside, WIDTH - 0.6 - beside],
        height_ratios=[right * strip, rows * cell * 0.8],
        wspace=0.02,
        hspace=0.02,
    )
    axes = figure.add_subplot(grid[1, 1])
    mesh = axes.pcolormesh(
        table,
        cmap=shades(),
        vmin=0,
        vmax=1,
        edgecolors=RULE,
        linewidth=0.4 if columns <= 16 else 0,
        rasterized=table.size > _MOST_CELLS_WITH_FIGURES,
    )
    axes.set_ylim(rows, 0)
    _cells(axes, table)
    _frames(axes, right, q, dkn)
    dress(axes)
    axes.set(xticks=[], yticks=[])
    _members(figure.add_subplot(grid[0, 1], sharex=axes), range(right), dkn, across=True)
    if q > right:
        _members(figure.add_subplot(grid[1, 0], sharey=axes), range(right, q), dkn, across=False)
    bar = figure.colorbar(mesh, ax=axes, location="bottom", aspect=40, shrink=0.9, pad=0.03)
    bar.set_label(_AXIS, fontsize=FONT, color=INK)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=INK, color=INK)
    return figure


def _cells(axes: Axes, table: NDArray[np.float64]) -> None:
    """Figures where there is room for them, else a mark on cells whose probability rose."""
    for (i, j), drop in np.ndenumerate(table):
        if table.size <= _MOST_CELLS_WITH_FIGURES:
            text = f"{round(drop, 2) + 0.0:.2f}"
        elif drop < -0.005:
            text = "+"
        else:
            continue
        axes.text(
            j + 0.5,
            i + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=SMALL,
            color=PAPER if drop > _HALF else INK,
        )


def _frames(axes: Axes, right: int, q: int, dkn: tuple[int, ...]) -> None:
    """Frames around the non-empty subsets of the DKN's members."""
    from matplotlib.patches import Rectangle

    member = sum(1 << i for i in dkn)
    for mask in range(1, 1 << q):
        if member and mask & ~member == 0:
            row, column = mask >> right, mask & ((1 << right) - 1)
            for color, line in ((PAPER, 3.4), (DARK, 1.8)):
                axes.add_patch(
                    Rectangle((column, row), 1, 1, fill=False, edgecolor=color, linewidth=line)
                )


def _members(axes: Axes, components: range, dkn: tuple[int, ...], *, across: bool) -> None:
    """Which components each column (or row) suppresses: a square for each."""
    n = len(components)
    bits = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
    for k, component in enumerate(components):
        there = np.flatnonzero(bits[:, k]) + 0.5
        apart = np.full(len(there), k + 0.5)
        x, y = (there, apart) if across else (apart, there)
        axes.plot(
            x,
            y,
            linestyle="none",
            marker="s",
            markersize=max(1.5, min(6.0, 90 / (1 << n))),
            color=DARK if component in dkn else "#9a9a9a",
        )
    names = [f"C{i + 1}{'*' if i in dkn else ''}" for i in components]
    at = [k + 0.5 for k in range(n)]
    dress(axes)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if across:
        axes.set_ylim(n, 0)
        axes.set_yticks(at, names)
    else:
        axes.set_xlim(0, n)
        axes.xaxis.tick_top()
        axes.set_xticks(at, names, rotation=90)
    axes.tick_params(length=0, labelbottom=False, labeltop=not across, labelleft=across)


def draw_dots(axes: Axes, result: FactResult) -> None:
    """Draw each subset's drop by the number of its components on axes, and their means."""
    drop = subset_drops(result)
    size = np.array([int(mask).bit_count() for mask in result.subset_masks])
    axes.plot(
        size,
        drop,
        ".",
        color=LIGHT,
        markeredgecolor="#9a9a9a",
        markersize=5,
        label="one subset",
        rasterized=len(drop) > MOST_VECTORS,
    )
    sizes = np.unique(size)
    means = [float(drop[size == k].mean()) for k in sizes]
    axes.plot(sizes, means, "D-", color=DARK, markersize=5, linewidth=1.2, label="mean")
    dress(axes, "components suppressed", _AXIS, grid="y")
    legend(axes, columns=2)
