"""Where neurons lie: layer against index, and how many in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.report.figures.style import (
    DARK,
    MIDDLE,
    MOST_VECTORS,
    PAPER,
    dress,
    legend,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CROWD = 300  # of DKN neurons, from where their marks are smaller


def neuron_map(
    located: ArrayLike,
    members: ArrayLike,
    *,
    n_layers: int | None = None,
    width: int | None = None,
) -> Figure:
    """Knowledge neurons N as small grey dots, DKN neurons D as larger dark diamonds.

    Beside the map, the number of different neurons of each in every layer (N's on the whole
    length, D's dark within it).

    Args:
        located: int ``[n, 2]`` (layer, index), all knowledge neurons; repeats count once.
        members: int ``[m, 2]``, those of DKNs.
        n_layers, width: of the model; None: as far as the neurons reach.

    Raises:
        ValueError: a neuron is outside the model.
    """
    every, dkn = _unique(located), _unique(members)
    layers, _ = _size(every, dkn, n_layers, width)
    figure = new_figure(min(5.2, max(2.4, 1.1 + 0.09 * layers)))
    place, counts = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    draw_neuron_map(place, located, members, n_layers=n_layers, width=width)
    at = np.arange(layers)
    for neurons, color in ((every, MIDDLE), (dkn, DARK)):
        counts.barh(at, np.bincount(neurons[:, 0], minlength=layers), height=0.8, color=color)
    dress(counts, "neurons")
    counts.tick_params(axis="y", length=0, labelleft=False)
    counts.locator_params(axis="x", integer=True)
    return figure


def draw_neuron_map(
    place: Axes,
    located: ArrayLike,
    members: ArrayLike,
    *,
    n_layers: int | None = None,
    width: int | None = None,
) -> None:
    """Draw the map of :func:`neuron_map` on axes, without the numbers beside it."""
    every, dkn = _unique(located), _unique(members)
    layers, last = _size(every, dkn, n_layers, width)
    _marks(place, every, f"N, knowledge neurons ({len(every):,})", MIDDLE, ".", 4)
    size = 4.5 if len(dkn) <= _CROWD else 2.5
    _marks(place, dkn, f"D, neurons of DKNs ({len(dkn):,})", DARK, "D", size)
    place.set_xlim(-0.02 * last - 0.5, 1.02 * last + 0.5)
    place.set_ylim(-0.8, layers - 0.2)
    dress(place, "index of the neuron in its layer", "layer")
    place.locator_params(axis="y", integer=True)
    legend(place)


def _size(
    every: NDArray[np.int64], dkn: NDArray[np.int64], n_layers: int | None, width: int | None
) -> tuple[int, int]:
    """Number of layers, and the last index in them."""
    both = np.concatenate([every, dkn])
    layers = n_layers or int(both[:, 0].max(initial=0)) + 1
    last = (width or int(both[:, 1].max(initial=0)) + 1) - 1
    if len(both) and (both.min() < 0 or both[:, 0].max() >= layers or both[:, 1].max() > last):
        raise ValueError(
            f"neurons must be within {layers} layers of {last + 1}; got (layer, index) up to "
            f"{tuple(both.max(axis=0).tolist())}"
        )
    return layers, last


def _marks(
    axes: Axes, neurons: NDArray[np.int64], label: str, color: str, marker: str, size: float
) -> None:
    axes.plot(
        neurons[:, 1],
        neurons[:, 0],
        linestyle="none",
        marker=marker,
        markersize=size,
        color=color,
        markeredgecolor=PAPER,
        markeredgewidth=0.5 if marker == "D" else 0,
        label=label,
        rasterized=len(neurons) > MOST_VECTORS,
    )


def _unique(neurons: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(neurons, dtype=np.int64).reshape(-1, 2)
    return np.unique(array, axis=0)
