"""A fact's located neurons as a graph: layers upwards, components in colours, the DKN ringed."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.neurons import adjacent_pairs, encode
from dkn_engine.report.clean import clean
from dkn_engine.report.figures.graph_layout import Places, place_neurons
from dkn_engine.report.figures.hasse_diagram import draw_lattice, has_lattice, lattice_height
from dkn_engine.report.figures.style import (
    COMPONENTS,
    FONT,
    INK,
    MIDDLE,
    OTHERS,
    PAPER,
    SMALL,
    WIDTH,
    dress,
    legend,
    new_figure,
)
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 80  # of a picture
_MOST_EDGES = 250  # between components and in none
_STEPS = 16  # of widths and areas: files stay small, and finer ones are not seen
_WIDEST, _NARROWEST = 5.0, 0.3  # of an edge, in points
_LARGEST = 90.0  # area of a mark, in square points
_RING = 5.0  # points that a ring is wider than its mark
_DIGIT = 0.66 * SMALL / 72  # inches; what common fonts take
_MARK, _BARE = 0.24, 0.16  # inches that a mark takes, with a label beside it and without
_ROW = 0.28  # inches
_BESIDE = 2.4  # inches of the lattice
_MARGIN = 0.75  # inches beside the rows, for the names of layers
_NONE = -1  # the component of a neuron that is in none
_FAINT = "#d0d0d0"


@dataclass(frozen=True, eq=False)
class _Graph:
    """What is drawn of a fact.

    Attributes:
        component: int64 ``[n]``, of each located neuron, or -1; ``ranks``: components by their
            colours, the DKN's first.
        labelled: bool ``[n]``, whose index is written.
        places: of the neurons, in inches and rows; ``marks``: float64 ``[n]``, x without labels.
        weights: float64 ``[m]``, |w| of the pairs of adjacent neurons; empty if none were kept.
    """

    result: FactResult
    component: NDArray[np.int64]
    ranks: list[int]
    labelled: NDArray[np.bool_]
    places: Places
    marks: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def n_keys(self) -> int:
        """Entries of the legend."""
        return min(len(self.ranks), len(COMPONENTS) + 1) + bool(self.result.dkn) + self.has_others

    @property
    def has_others(self) -> bool:
        return bool((self.component == _NONE).any())


def dkn_graph(result: FactResult) -> Figure:
    """The graph of a fact's located neurons, as wide as a phone.

    A mark is a neuron; its area is the score, its colour and form say the component, a ring that it
    is in the DKN. An edge joins neurons in adjacent layers and is as wide as |w|, the connection
    weight; within a component it has that one's colour. Indices are written beside the marks of all
    neurons if there are at most 80, else of those in components, else of those in the DKN. All
    edges within components are drawn, and the 250 widest others. Neurons that were not located are
    left out.

    Raises:
        ValueError: the fact has no neurons, or weights that are not its neurons'.
    """
    room = WIDTH - _MARGIN
    figure = new_figure(graph_height(result, room))
    draw_graph(figure.subplots(), result, room)
    return figure


def graph_with_lattice(result: FactResult) -> Figure:
    """:func:`dkn_graph` under the fact's name, the lattice of a small family beside it.

    Raises:
        ValueError: as :func:`dkn_graph`.
    """
    room, has_beside = WIDTH - _MARGIN, has_lattice(result)
    high, beside = graph_height(result, room) + 0.25, lattice_height(result) if has_beside else 0
    height = max(high, beside + 0.3)
    figure = new_figure(height, WIDTH + (_BESIDE if has_beside else 0))
    if has_beside:
        grid = figure.add_gridspec(
            2, 2, width_ratios=[WIDTH, _BESIDE], height_ratios=[beside, max(height - beside, 0.01)]
        )
        draw_lattice(figure.add_subplot(grid[0, 1]), result)
        axes = figure.add_subplot(grid[:, 0])
    else:
        axes = figure.subplots()
    draw_graph(axes, result, room)
    name = textwrap.fill(clean(f"{result.prompt or result.fact_id} → {result.answer}"), 60)
    figure.suptitle(name, fontsize=FONT, color=INK, parse_math=False)
    return figure


def graph_height(result: FactResult, room: float) -> float:
    """Inches that a figure of :func:`draw_graph` needs for rows of ``room`` inches."""
    graph = _graph(result, room)
    return 0.7 + 0.17 * -(-graph.n_keys // 2) + _ROW * max(graph.places.height, 2)


def draw_graph(axes: Axes, result: FactResult, room: float) -> None:
    """Draw :func:`dkn_graph` on axes that are about ``room`` inches wide."""
    graph = _graph(result, room)
    _edges(axes, graph)
    _marks(axes, graph)
    _labels(axes, graph)
    axes.set_xlim(0, room)
    axes.set_ylim(-0.7, max(graph.places.height, 2) - 0.3)
    layers = graph.places.layers
    axes.set_yticks(list(layers.values()), [f"layer {layer}" for layer in layers])
    axes.set_xticks([])
    dress(axes, _units(graph))
    axes.tick_params(axis="y", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _keys(axes, graph)


def _graph(result: FactResult, room: float) -> _Graph:
    weights = _weights(result)
    component = np.full(len(result.neurons), _NONE)
    codes = encode(result.neurons)
    for i, one in enumerate(result.components):
        component[np.isin(codes, encode(one.neurons))] = i
    others = [i for i in range(len(result.components)) if i not in result.dkn]
    ranks = [*result.dkn, *others]
    lanes = np.array([ranks.index(c) if c != _NONE else len(ranks) for c in component.tolist()])
    labelled = _labelled(component, result.dkn)
    label = len(str(int(result.neurons[:, 1].max()))) * _DIGIT + 0.02
    widths = np.where(labelled, _MARK + label, _BARE)
    there = weights if len(weights) else np.zeros(len(adjacent_pairs(result.neurons)))
    places = place_neurons(result.neurons, lanes, there, widths, room)
    marks = places.x - np.where(labelled, label / 2, 0)
    return _Graph(result, component, ranks, labelled, places, marks, weights)


def _weights(result: FactResult) -> NDArray[np.float64]:
    """|w| of the pairs of adjacent neurons; checked to be theirs."""
    if not len(result.neurons):
        raise ValueError(f"fact {result.fact_id!r} has no neurons; there is nothing to draw")
    weights = np.abs(result.connection_weights.astype(np.float64))
    n_pairs = len(adjacent_pairs(result.neurons))
    if len(weights) not in {0, n_pairs}:
        raise ValueError(
            f"fact {result.fact_id!r} must have a connection weight for each of its {n_pairs} "
            f"pairs of adjacent neurons; got {len(weights)}"
        )
    return weights


def _labelled(component: NDArray[np.int64], dkn: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whose index is written: of the largest kind of neurons that is small enough."""
    every = np.ones(len(component), dtype=bool)
    for some in (every, component != _NONE, np.isin(component, dkn)):
        if np.count_nonzero(some) <= _MOST_LABELS:
            return some
    return ~every


def _look(rank: int) -> tuple[str, str]:
    return COMPONENTS[rank] if rank < len(COMPONENTS) else OTHERS


def _edges(axes: Axes, graph: _Graph) -> None:
    """The edges within components and the widest others, wide ones on top."""
    if not len(graph.weights) or not graph.weights.max():
        return
    pairs = adjacent_pairs(graph.result.neurons)
    low, high = graph.component[pairs].T
    inside = (low == high) & (low != _NONE)
    share = graph.weights / graph.weights.max()
    enough = np.sort(share[~inside])[-_MOST_EDGES:].min(initial=1)
    drawn = np.flatnonzero(inside | ((share >= enough) & (_WIDEST * share >= _NARROWEST)))
    ends = np.stack([graph.marks, graph.places.y], axis=1)[pairs]
    steps = np.maximum(np.ceil(_STEPS * share), 1)
    looks = np.where(inside, low, _NONE)
    for look, step in sorted({(int(looks[i]), int(steps[i])) for i in drawn}):
        at = drawn[(looks[drawn] == look) & (steps[drawn] == step)]
        color = _FAINT if look == _NONE else _look(graph.ranks.index(look))[0]
        _lines(axes, ends[at], _WIDEST * step / _STEPS, color)


def _lines(axes: Axes, ends: NDArray[np.float64], width: float, color: str) -> None:
    """Lines from ``ends[:, 0]`` to ``ends[:, 1]`` as one path, which keeps files small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    codes = [Path.MOVETO, Path.LINETO] * len(ends)
    path = Path(ends.reshape(-1, 2), codes)
    axes.add_patch(
        PathPatch(path, facecolor="none", edgecolor=color, linewidth=width, capstyle="round")
    )


def _areas(graph: _Graph) -> NDArray[np.float64]:
    """Area of each mark in proportion to the score, in sixteen steps; at least one.

    Neurons whose scores are not known have a third of the largest area.
    """
    if not np.isfinite(graph.result.scores).all():
        return np.full(len(graph.component), _LARGEST / 3)
    scores = np.maximum(graph.result.scores.astype(np.float64), 0)
    share = scores / max(float(scores.max()), float(np.finfo(float).tiny))
    return np.maximum(np.ceil(_STEPS * share), 1) * _LARGEST / _STEPS


def _marks(axes: Axes, graph: _Graph) -> None:
    areas, dkn = _areas(graph), graph.result.dkn
    for component in [_NONE, *graph.ranks]:
        rank = graph.ranks.index(component) if component != _NONE else _NONE
        at = np.flatnonzero(graph.component == component)
        color, marker = (PAPER, "o") if component == _NONE else _look(rank)
        edge = MIDDLE if component == _NONE else INK
        for area in np.unique(areas[at]).tolist():
            some = at[areas[at] == area]
            size = float(np.sqrt(area))
            _dots(axes, graph, some, marker, size, color, edge, 0.8)
            if component in dkn:
                _dots(axes, graph, some, "o", size + _RING, "none", INK, 1.4)


def _dots(
    axes: Axes,
    graph: _Graph,
    at: NDArray[np.int64],
    marker: str,
    size: float,
    color: str,
    edge: str,
    line: float,
) -> None:
    axes.plot(
        graph.marks[at],
        graph.places.y[at],
        linestyle="none",
        marker=marker,
        markersize=size,
        markerfacecolor=color,
        markeredgecolor=edge,
        markeredgewidth=line,
        zorder=3,
    )


def _labels(axes: Axes, graph: _Graph) -> None:
    """Indices beside their marks, on paper that hides the edges behind them."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    boxes = []
    for i in np.flatnonzero(graph.labelled).tolist():
        text, y = str(graph.result.neurons[i, 1]), graph.places.y[i]
        left = graph.marks[i] + _MARK / 2
        axes.text(left, y, text, va="center", fontsize=SMALL, color=INK, zorder=4)
        right, low, high = left + len(text) * _DIGIT, y - 0.2, y + 0.2
        corners = [(left, low), (right, low), (right, high), (left, high), (left, low)]
        boxes.append(Path(corners, closed=True))
    if boxes:
        whole = Path.make_compound_path(*boxes)
        axes.add_patch(PathPatch(whole, facecolor=PAPER, alpha=0.8, linewidth=0, zorder=2.5))


def _keys(axes: Axes, graph: _Graph) -> None:
    """The legend: what the colours, forms and rings mean."""
    keys = [(*_look(rank), INK, _key_of(graph, c)) for rank, c in enumerate(graph.ranks)]
    more = len(keys) - len(COMPONENTS)
    if more > 0:
        keys[len(COMPONENTS) :] = [(*OTHERS, INK, f"{more} more components")]
    if graph.result.dkn:
        keys.append(("none", "o", INK, "ring, *: in the DKN"))
    if graph.has_others:
        n = np.count_nonzero(graph.component == _NONE)
        keys.append((PAPER, "o", MIDDLE, f"in no component: {n}"))
    for color, marker, edge, label in keys:
        ring = color == "none"
        axes.plot(
            [],
            [],
            linestyle="none",
            marker=marker,
            markersize=9 if ring else 6.5,
            markerfacecolor=color,
            markeredgecolor=edge,
            markeredgewidth=1.4 if ring else 0.8,
            label=label,
        )
    legend(axes, columns=2)


def _key_of(graph: _Graph, component: int) -> str:
    n = len(graph.result.components[component].neurons)
    star = "*" if component in graph.result.dkn else ""
    return f"C{component + 1}{star}: {n} neuron{'s' if n != 1 else ''}"


def _units(graph: _Graph) -> str:
    scores = graph.result.scores
    is_known = bool(np.isfinite(scores).all())
    areas = f"area: score, {scores.min():.2g} to {scores.max():.2g}"
    areas = areas if is_known else "scores not known"
    if not len(graph.result.connection_weights):
        has_pairs = len(adjacent_pairs(graph.result.neurons))
        return f"{areas}; {'this run kept no weights' if has_pairs else 'no adjacent layers'}"
    return f"{areas}; width: weight |w|, up to {graph.weights.max():.2g}"
