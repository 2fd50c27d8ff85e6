"""Pictures of results, which notebooks show: ``dkn.plot.graph(results[0])``.

Each function takes a result, or results, first. Without ``ax`` it makes a figure of its own, which
a notebook shows as it is and ``savefig`` writes; pyplot does not know of it. With ``ax``, axes of
matplotlib, it draws there and returns them. matplotlib is needed (``pip install matplotlib``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, overload

import numpy as np

from dkn_engine.errors import UserError
from dkn_engine.report import figures
from dkn_engine.report.drawings import sets_of, shares_of
from dkn_engine.report.figures.component_graph import draw_graph, graph_with_lattice
from dkn_engine.report.figures.hasse_diagram import draw_lattice
from dkn_engine.report.figures.lifetimes import draw_barcode
from dkn_engine.report.figures.neurons import draw_neuron_map
from dkn_engine.report.figures.share_matrix import draw_overlap
from dkn_engine.report.figures.subsets import draw_dots
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["barcode", "graph", "neurons", "overlap", "subsets"]

Given = FactResult | Iterable[FactResult]


@overload
def graph(result: Given, ax: None = None) -> Figure: ...
@overload
def graph(result: Given, ax: Axes) -> Axes: ...
def graph(result: Given, ax: Axes | None = None) -> Figure | Axes:
    """A fact's located neurons: layers upwards, edges as wide as ``|w|``, components in colours.

    Area is the score, a ring marks the DKN. In a figure of its own the lattice of the DKN (of all
    candidates, without one) stands beside it, where that has three components at most.

    Args:
        result: of one fact, with neurons.
        ax: axes to draw the graph on, alone.

    Raises:
        UserError: not the result of one fact, or matplotlib is not installed.
        ValueError: the fact has no neurons.
    """
    one = _one("graph", result)
    if ax is None:
        return graph_with_lattice(one)
    draw_graph(ax, one, _inches(ax))
    return ax


@overload
def barcode(result: Given, ax: None = None) -> Figure: ...
@overload
def barcode(result: Given, ax: Axes) -> Axes: ...
def barcode(result: Given, ax: Axes | None = None) -> Figure | Axes:
    """The life of a fact's components in the filtration, the DKN's dark.

    Args and errors: see :func:`graph`; ValueError: the fact has no components.
    """
    one = _one("barcode", result)
    if ax is None:
        return figures.barcode(one)
    draw_barcode(ax, one)
    return ax


@overload
def subsets(result: Given, ax: None = None) -> Figure: ...
@overload
def subsets(result: Given, ax: Axes) -> Axes: ...
def subsets(result: Given, ax: Axes | None = None) -> Figure | Axes:
    """What is left of the answer's probability with each subset of components suppressed.

    Up to three components: the lattice. More: a map of all subsets, or, on ``ax`` and where the
    subsets were sampled, a dot for each by its size.

    Args and errors: see :func:`graph`; ValueError: no subsets were measured.
    """
    one = _one("subsets", result)
    is_whole = len(figures.lattice_family(one)) == len(one.components)
    is_lattice = is_whole and figures.has_lattice(one)
    if ax is None:
        return figures.lattice(one) if is_lattice else figures.subset_map(one)
    (draw_lattice if is_lattice else draw_dots)(ax, one)
    return ax


@overload
def neurons(results: Given, ax: None = None) -> Figure: ...
@overload
def neurons(results: Given, ax: Axes) -> Axes: ...
def neurons(results: Given, ax: Axes | None = None) -> Figure | Axes:
    """Where the knowledge neurons and the DKNs' of one or more facts lie, by layer and index.

    Beside the map, in a figure of its own, how many there are in each layer.

    Args:
        results: of one or more facts; each neuron counts once.
        ax: axes to draw the map on, alone.

    Raises:
        UserError: not results, or matplotlib is not installed.
    """
    every = _every("neurons", results)
    none = np.empty((0, 2), dtype=np.int32)
    located = np.concatenate([none, *(r.neurons for r in every)])
    members = np.concatenate([none, *(r.components[i].neurons for r in every for i in r.dkn)])
    layers = max((len(r.n_points) for r in every), default=0) or None
    if ax is None:
        return figures.neuron_map(located, members, n_layers=layers)
    draw_neuron_map(ax, located, members, n_layers=layers)
    return ax


@overload
def overlap(results: Given, ax: None = None) -> Figure: ...
@overload
def overlap(results: Given, ax: Axes) -> Axes: ...
def overlap(results: Given, ax: Axes | None = None) -> Figure | Axes:
    """How many knowledge neurons of one relation are those of another, too; of one fact, if there
    is one relation and ten facts at most.

    Args:
        results: of two or more facts that have neurons.
        ax: axes to draw the matrix on.

    Raises:
        UserError: there is nothing to compare, or matplotlib is not installed.
    """
    found = sets_of([r for r in _every("overlap", results) if len(r.neurons)])
    if found is None:
        raise UserError("overlap needs results of two or more relations, or of two to ten facts")
    _, names, sets = found
    if ax is None:
        return figures.overlap(shares_of(sets), names)
    draw_overlap(ax, shares_of(sets), names, names)
    return ax


def _every(name: str, given: Given) -> list[FactResult]:
    """Results as a list; a single one is a list of one."""
    found = [given] if isinstance(given, FactResult) else list(given)
    for one in found:
        if not isinstance(one, FactResult):
            raise UserError(f"{name} draws results; got {type(one).__name__}")
    return found


def _one(name: str, given: Given) -> FactResult:
    every = _every(name, given)
    if len(every) != 1:
        raise UserError(f"{name} draws one fact; got {len(every)} results (give one: results[0])")
    return every[0]


def _inches(ax: Axes) -> float:
    """Width of axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return float(ax.get_window_extent().width / figure.dpi)
