"""How a fact's neurons act on one another, as a matrix in the order of their groups."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.neurons import encode
from dkn_engine.report.figures.style import (
    COMPONENTS,
    DARK,
    FONT,
    INK,
    OTHERS,
    PAPER,
    SMALL,
    WIDTH,
    broken,
    dress,
    new_figure,
)
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_GROUP = -1
_MOST_NEURONS = 60  # of those in no group fewer are drawn beyond it
_MOST_NAMED = 24  # neurons that are named beside their rows
_SERIES = "#d55e00"  # below 0
_MARKED = 0.05  # of the scale, from where pairs in series have a mark that grey shows, too
_AXIS = "interaction in nats: above 0 two neurons cover for one another, below 0 they are in series"


def grouped_interactions(
    result: FactResult,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The neurons that are drawn, their groups and their interactions.

    Returns:
        Places in ``result.neurons`` int64 ``[m]``: the DKN's members one behind the other, other
        components, then those in none by score, up to 60 in all; the component of each int64
        ``[m]``, -1 for none; float64 ``[m, m]``, NaN on the diagonal.

    Raises:
        ValueError: there are no interactions, or not those of the fact's neurons.
    """
    n, given = len(result.neurons), result.pair_interactions
    if n < 2 or len(given) != n * (n - 1) // 2:
        raise ValueError(
            f"fact {result.fact_id!r} must have an interaction for each of the "
            f"{n * (n - 1) // 2} pairs of its neurons, and one at least; got {len(given)}"
        )
    codes, matrix = encode(result.neurons), np.full((n, n), np.nan)
    first, second = np.triu_indices(n, 1)
    matrix[first, second] = matrix[second, first] = given
    others = [i for i in range(len(result.components)) if i not in result.dkn]
    order, groups = [], []
    for component in [*result.dkn, *others]:
        at = np.flatnonzero(np.isin(codes, encode(result.components[component].neurons)))
        order.append(at[np.argsort(codes[at])])
        groups.append(np.full(len(at), component))
    rest = np.setdiff1d(np.arange(n), np.concatenate([*order, np.empty(0, dtype=np.int64)]))
    rest = rest[: max(0, _MOST_NEURONS - sum(map(len, order)))]
    places = np.concatenate([*order, rest]).astype(np.int64)
    labels = np.concatenate([*groups, np.full(len(rest), NO_GROUP)]).astype(np.int64)
    return places, labels, matrix[np.ix_(places, places)]


def interaction_matrix(result: FactResult) -> Figure:
    """Interactions of pairs of a fact's neurons, blue where they cover for one another.

    Rows and columns are in the order of :func:`grouped_interactions`, with frames around the pairs
    within a component, in its colour in the graph. Neurons are named if there are at most 24.

    Raises:
        ValueError: as there.
    """
    places, labels, matrix = grouped_interactions(result)
    figure = new_figure(WIDTH + 0.2, WIDTH - 0.4)
    axes = figure.subplots()
    _cells(axes, matrix, _scale(matrix, labels))
    _groups(axes, labels, result)
    named = len(places) <= _MOST_NAMED
    names = [f"{layer}:{index}" for layer, index in result.neurons[places].tolist()]
    dress(axes)
    axes.set_yticks(range(len(places)) if named else [], names if named else [])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0, labelbottom=False, labeltop=True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _scale(matrix: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The largest size of an interaction between neurons of components; of any, if there is none.

    Neurons in no component may act on one another far more, and would leave the others white.
    """
    grouped = labels != NO_GROUP
    for some in (matrix[np.ix_(grouped, grouped)], matrix):
        most = float(np.abs(some[np.isfinite(some)]).max(initial=0))
        if most:
            return most
    return 1.0


def _cells(axes: Axes, matrix: NDArray[np.float64], most: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("interactions", [_SERIES, PAPER, DARK])
    shown = np.ma.masked_invalid(matrix)
    mesh = axes.pcolormesh(shown, cmap=colors, vmin=-most, vmax=most, rasterized=True)
    below = np.argwhere(matrix < -_MARKED * most) + 0.5
    size = min(6.0, 150 / len(matrix))
    axes.plot(
        below[:, 1], below[:, 0], "_", color=INK, markersize=size, rasterized=len(below) > 200
    )
    axes.set_ylim(len(matrix), 0)
    axes.set_aspect("equal")
    beyond = bool((np.abs(shown) > most).any())
    bar = axes.figure.colorbar(
        mesh,
        ax=axes,
        location="bottom",
        aspect=40,
        shrink=0.9,
        pad=0.03,
        extend="both" if beyond else "neither",
    )
    bar.set_label(broken(_AXIS), fontsize=FONT, color=INK)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=INK, color=INK)


def _groups(axes: Axes, labels: NDArray[np.int64], result: FactResult) -> None:
    """Frames around the groups' own pairs, and their names above."""
    from matplotlib.patches import Rectangle

    ends = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    middles, names = [], []
    for rank, (start, end) in enumerate(pairwise(ends)):
        component, size = int(labels[start]), end - start
        middles.append((start + end) / 2)
        if component == NO_GROUP:
            n = len(result.neurons) - start
            names.append(f"in none: {size}" + (f" of {n}" if size < n else ""))
            continue
        names.append(f"C{component + 1}{'*' if component in result.dkn else ''}")
        color, _ = COMPONENTS[rank] if rank < len(COMPONENTS) else OTHERS
        for edge, width in ((PAPER, 3.4), (color, 1.8)):
            axes.add_patch(
                Rectangle((start, start), size, size, fill=False, edgecolor=edge, linewidth=width)
            )
    axes.set_xticks(middles, names)
