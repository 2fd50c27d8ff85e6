"""Bars with 95 % intervals, one a group."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dkn_engine.report.figures.style import (
    HATCH,
    INK,
    MAIN,
    PAPER,
    SMALL,
    dress,
    literal,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def bars(
    labels: Sequence[str],
    means: ArrayLike,
    lows: ArrayLike,
    highs: ArrayLike,
    *,
    axis: str,
    n: Sequence[int] | None = None,
    control: Sequence[bool] | None = None,
    fills: Sequence[str] | None = None,
) -> Figure:
    """Horizontal bars from zero, the first at the top; controls are hatched.

    Args:
        labels: of the groups; equal ones stay apart.
        means: ``[groups]``; one that is not finite has no bar and says "not measured".
        lows, highs: ends of the intervals ``[groups]``; no whisker where not finite.
        axis: what the bars show, with its unit.
        n: measurements behind each mean, printed beside it.
        control: which groups are controls.
        fills: colours of the bars, under the hatch of controls; by default controls are white.

    Raises:
        ValueError: the arguments are not equally long.
    """
    mean, low, high = (np.asarray(v, dtype=np.float64) for v in (means, lows, highs))
    n_groups = len(labels)
    flags = list(control) if control is not None else [False] * n_groups
    colors = list(fills) if fills is not None else [PAPER if f else MAIN for f in flags]
    _check_lengths(
        n_groups,
        means=mean,
        lows=low,
        highs=high,
        control=flags,
        fills=colors,
        n=flags if n is None else n,
    )
    figure = new_figure(0.75 + 0.3 * n_groups)
    axes = figure.subplots()
    for i, is_control in enumerate(flags):
        if math.isfinite(mean[i]):
            _bar(axes, i, mean[i], colors[i], HATCH if is_control else None)
            if math.isfinite(low[i]) and math.isfinite(high[i]):
                _whisker(axes, i, low[i], high[i])
        text = f"{round(mean[i], 2) + 0.0:.2f}" if math.isfinite(mean[i]) else "not measured"
        _beside(axes, i, text if n is None else f"{text}  n = {n[i]:,}")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(np.arange(n_groups), labels)
    axes.set_ylim(n_groups - 0.4, -0.6)
    dress(axes, axis, grid="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    literal(axes)
    return figure


def _check_lengths(n_groups: int, **arguments: Sized) -> None:
    for name, values in arguments.items():
        if len(values) != n_groups:
            raise ValueError(f"{name} must have one entry a label, {n_groups}; got {len(values)}")


def _bar(axes: Axes, at: int, mean: float, color: str, hatch: str | None) -> None:
    axes.barh(at, mean, height=0.68, color=color, edgecolor=INK, linewidth=0.8, hatch=hatch)


def _whisker(axes: Axes, at: int, low: float, high: float) -> None:
    """A white line under the ink keeps it visible on a hatch."""
    axes.plot([low, high], [at, at], color=PAPER, linewidth=3.2, solid_capstyle="butt")
    axes.plot([low, high], [at, at], color=INK, linewidth=1.3, marker="|", markersize=7)


def _beside(axes: Axes, at: int, text: str) -> None:
    axes.annotate(
        text,
        (1, at),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
        color=INK,
    )
