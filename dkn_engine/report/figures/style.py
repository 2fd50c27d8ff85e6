"""What all figures share: size, ink, fonts, and axes without decoration."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from dkn_engine.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

WIDTH = 4.6  # inches; nearly a phone's, where shrinking must leave letters legible
FONT = 9.0  # points
SMALL = 8.0
INK, RULE, PAPER = "#1c1c1c", "#d0d0d0", "#ffffff"
# Fills tell groups apart by luminance first, so that they do in grey, too.
MAIN, DARK, MIDDLE, LIGHT = "#7b9cc0", "#17375e", "#8c8c8c", "#d9d9d9"
HATCH = "/////"
# Colours of Okabe and Ito, which colour-blind people tell apart, each with a form of its own, which
# does in grey; the first two also differ in luminance.
COMPONENTS = (
    ("#0072b2", "o"),
    ("#e69f00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#56b4e9", "v"),
    ("#d55e00", "P"),
    ("#f0e442", "h"),
    ("#000000", "X"),
)
OTHERS = ("#8c8c8c", "p")  # of components beyond these
_LINE = 42  # characters of a label
MOST_VECTORS = 1000  # more marks become pixels, so that a file stays small
_DARKEST = 0.15  # of the scale of shares: not black, so that lines show on it

HOW_TO_GET = "pip install matplotlib"


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty white figure, in inches, that pyplot does not know of and notebooks show.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from dkn_engine.report.figures.picture import Picture
    except ImportError as error:
        raise UserError(f"figures need matplotlib: {HOW_TO_GET}") from error
    return Picture(
        figsize=(width, height), dpi=100, facecolor=PAPER, edgecolor=PAPER, layout="constrained"
    )


def dress(axes: Axes, x: str = "", y: str = "", *, grid: str | None = None) -> None:
    """Labels, ticks and spines in ink whatever the user's own style; call it last.

    Args:
        axes: to be dressed.
        x, y: labels with units.
        grid: ``"x"`` or ``"y"`` for rules behind the data along that axis.
    """
    axes.set_facecolor(PAPER)
    axes.set_xlabel(broken(x), fontsize=FONT, color=INK)
    axes.set_ylabel(broken(y), fontsize=FONT, color=INK)
    axes.tick_params(
        which="both", labelsize=SMALL, labelcolor=INK, color=INK, width=0.8, direction="out"
    )
    for name, spine in axes.spines.items():
        spine.set(color=INK, linewidth=0.8, visible=name in {"left", "bottom"})
    axes.grid(visible=False)
    if grid == "x":
        axes.grid(visible=True, axis="x", color=RULE, linewidth=0.6)
    elif grid == "y":
        axes.grid(visible=True, axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def broken(label: str) -> str:
    """A long label on several lines."""
    return textwrap.fill(label, _LINE)


def shades() -> Colormap:
    """From white for nothing to nearly black for all, even in luminance."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", [PAPER, str(_DARKEST)])


def literal(axes: Axes) -> None:
    """Names on the axes as they are: a dollar sign begins no formula."""
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title):
        label.set_parse_math(False)


def legend(axes: Axes, columns: int = 1) -> None:
    """A frameless legend above the axes, where it hides no data."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=2.4,
    )
