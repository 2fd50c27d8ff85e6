"""The subsets of a small family as a Hasse diagram, with the probability that each leaves."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from dkn_engine.report.figures.style import (
    FONT,
    INK,
    MIDDLE,
    PAPER,
    SMALL,
    new_figure,
    shades,
)
from dkn_engine.report.figures.subsets import has_drops
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_MEMBERS = 3
LATTICE_WIDTH = 3.0  # inches
_ROW = 0.75  # inches
_HALF = 0.55  # of the scale, from where ink gives way to white


def lattice(result: FactResult) -> Figure:
    """The Hasse diagram of the family's subsets: what is suppressed, p, and the share of it left.

    The family is the DKN, or all candidates of a fact without one. A line joins sets that differ by
    one component; the darker a box, the more of the clean probability is lost.

    Raises:
        ValueError: the family has not one to three components, all of whose subsets were measured.
    """
    figure = new_figure(lattice_height(result), LATTICE_WIDTH)
    draw_lattice(figure.subplots(), result)
    return figure


def lattice_height(result: FactResult) -> float:
    """Inches that a figure of :func:`draw_lattice` needs."""
    return 0.35 + _ROW * (len(lattice_family(result)) + 1)


def has_lattice(result: FactResult) -> bool:
    """Whether :func:`lattice` can be drawn."""
    family = lattice_family(result)
    if not (0 < len(family) <= _MOST_MEMBERS and has_drops(result)):
        return False
    return set(_masks(family)) <= set(result.subset_masks.tolist())


def lattice_family(result: FactResult) -> tuple[int, ...]:
    """Components whose subsets are shown: the DKN's, or all of a fact without one."""
    return result.dkn or tuple(range(len(result.components)))


def draw_lattice(axes: Axes, result: FactResult) -> None:
    """Draw :func:`lattice` on axes."""
    if not has_lattice(result):
        raise ValueError(
            f"fact {result.fact_id!r} must have a family of one to {_MOST_MEMBERS} components, all "
            f"of whose subsets were measured; got {len(lattice_family(result))} components and "
            f"{len(result.subset_masks)} subsets"
        )
    family = lattice_family(result)
    p = dict(zip(result.subset_masks.tolist(), result.subset_probabilities.tolist(), strict=True))
    places = _places(family)
    for (mask, (x, y)), (other, (x2, y2)) in itertools.combinations(places.items(), 2):
        if (mask ^ other).bit_count() == 1:
            axes.plot([x, x2], [y, y2], color=MIDDLE, linewidth=1, zorder=1)
    for mask, (x, y) in places.items():
        lost = 1 - p[mask] / p[0]
        axes.text(
            x,
            y,
            f"{_names(mask, family)}\np {p[mask]:.2g}\n{p[mask] / p[0]:.0%}",
            ha="center",
            va="center",
            fontsize=SMALL,
            color=PAPER if lost > _HALF else INK,
            bbox={
                "boxstyle": "round,pad=0.3",
                "facecolor": shades()(min(max(lost, 0), 1)),
                "edgecolor": INK,
                "linewidth": 0.8,
            },
        )
    axes.set_xlim(-1.35, 1.35)
    axes.set_ylim(-len(family) - 0.45, 0.45)
    axes.set_axis_off()
    axes.set_title("suppressed, p, share of p left", fontsize=FONT, color=INK)


def _masks(family: tuple[int, ...]) -> list[int]:
    """Every subset, by size; bit i: component i is in it."""
    return [
        sum(1 << i for i in some)
        for size in range(len(family) + 1)
        for some in itertools.combinations(family, size)
    ]


def _places(family: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """x within -1 and 1 and y, one level for each size, nothing suppressed at the top."""
    places = {}
    for size, level in itertools.groupby(_masks(family), int.bit_count):
        masks = list(level)
        for k, mask in enumerate(masks):
            places[mask] = ((2 * k - len(masks) + 1) / max(len(family) - 1, 1), float(-size))
    return places


def _names(mask: int, family: tuple[int, ...]) -> str:
    if not mask:
        return "none"
    if mask.bit_count() == len(family) > 1:
        return "all" if len(family) > 2 else "both"
    return " + ".join(f"C{i + 1}" for i in family if mask >> i & 1)
