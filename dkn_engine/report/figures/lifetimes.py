"""The life of a fact's components in the filtration: one bar each, from birth to death."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dkn_engine.report.figures.style import DARK, INK, LIGHT, dress, legend, new_figure
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS = "radius of the filtration, distance 1/|w|"


def barcode(result: FactResult) -> Figure:
    """Bars of the candidate components, the most persistent at the top.

    Members of the DKN are dark with a filled circle at birth, the others light with a hollow one;
    a component that never dies ends in an arrow at the edge.

    Raises:
        ValueError: the fact has no components.
    """
    figure = new_figure(0.95 + 0.27 * len(result.components))
    draw_barcode(figure.subplots(), result)
    return figure


def draw_barcode(axes: Axes, result: FactResult) -> None:
    """Draw :func:`barcode` on axes."""
    components = result.components
    if not components:
        raise ValueError(f"fact {result.fact_id!r} has no components; there is nothing to draw")
    birth = np.array([c.birth for c in components])
    death = np.array([c.death for c in components])
    finite = np.concatenate([birth[np.isfinite(birth)], death[np.isfinite(death)]])
    edge = 1.05 * float(finite.max()) if finite.size else 1.0
    for label, member in (("* in the DKN", True), ("other candidate", False)):
        at = [i for i in range(len(components)) if (i in result.dkn) == member]
        if not at:
            continue
        ends = np.where(np.isfinite(death[at]), death[at], edge)
        axes.barh(
            at,
            ends - birth[at],
            left=birth[at],
            height=0.6,
            color=DARK if member else LIGHT,
            edgecolor=INK,
            linewidth=0.8,
        )
        axes.plot(
            birth[at],
            at,
            linestyle="none",
            marker="o",
            markersize=6,
            color=INK,
            markerfacecolor=DARK if member else "white",
            label=label,
        )
    immortal = np.flatnonzero(~np.isfinite(death))
    axes.plot(np.full(len(immortal), edge), immortal, ">", color=INK, markersize=7)
    axes.set_yticks(
        range(len(components)),
        [
            f"C{i + 1}{'*' if i in result.dkn else ''}, {_neurons(len(c.neurons))}"
            for i, c in enumerate(components)
        ],
    )
    axes.set_ylim(len(components) - 0.4, -0.6)
    axes.set_xlim(0, edge)
    dress(axes, AXIS, grid="x")
    axes.tick_params(axis="y", length=0)
    legend(axes, columns=2)


def _neurons(n: int) -> str:
    return f"{n:,} neuron" if n == 1 else f"{n:,} neurons"
