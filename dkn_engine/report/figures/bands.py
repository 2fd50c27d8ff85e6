"""Lines with 95 % bands: a figure against a size, an epoch, a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dkn_engine.report.figures.style import DARK, INK, MAIN, MIDDLE, dress, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"
_LINES = ("-", "--", "-.", ":")
_MOST_TICKS = 8
_COLORS = (DARK, MAIN, MIDDLE, INK)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One group's line.

    Attributes:
        name: in the legend.
        x, mean: ``[points]``; a mean that is not finite leaves a gap.
        low, high: ends of the intervals ``[points]``; None for no band.
        control: drawn thin, with hollow markers.
    """

    name: str
    x: ArrayLike
    mean: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    control: bool = False


def bands(
    series: Sequence[Series], *, x_axis: str, y_axis: str, log_x: bool = False, log_y: bool = False
) -> Figure:
    """Lines told apart by marker, dashes and luminance; intervals as bands of the same shade.

    Args:
        series: the groups, at most eight.
        x_axis, y_axis: labels with units.
        log_x, log_y: logarithmic axes.

    Raises:
        ValueError: more groups than markers.
    """
    if len(series) > len(_MARKERS):
        raise ValueError(f"series must be at most {len(_MARKERS)}; got {len(series)}")
    figure = new_figure(3.2)
    axes = figure.subplots()
    for i, one in enumerate(series):
        color = _COLORS[i % len(_COLORS)]
        x, mean = np.asarray(one.x, np.float64), np.asarray(one.mean, np.float64)
        if one.low is not None and one.high is not None:
            low, high = np.asarray(one.low, np.float64), np.asarray(one.high, np.float64)
            axes.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)
        axes.plot(
            x,
            mean,
            linestyle=_LINES[i % len(_LINES)],
            linewidth=1.0 if one.control else 1.6,
            color=color,
            marker=_MARKERS[i],
            markersize=5,
            markerfacecolor="white" if one.control else color,
            markeredgecolor=color,
            label=one.name,
        )
    if log_x:
        axes.set_xscale("log")
        _plain_ticks(axes, series)
    if log_y:
        axes.set_yscale("log")
    dress(axes, x_axis, y_axis, grid="y")
    if len(series) > 1:
        legend(axes, columns=min(4, len(series)))
    return figure


def _plain_ticks(axes: Axes, series: Sequence[Series]) -> None:
    """The measured places themselves, where they are few enough to be read."""
    places = np.unique([x for s in series for x in np.asarray(s.x, np.float64)])
    if 0 < len(places) <= _MOST_TICKS:
        axes.set_xticks(places, [f"{x:,.6g}" for x in places])
        axes.set_xticks([], minor=True)
