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
    both = np.concatenate([every, dkn])
    layers = n_layers or int(both[:, 0].max(initial=0)) + 1
    last = (width or int(both[:, 1].max(initial=0)) + 1) - 1
    if len(both) and (both.min() < 0 or both[:, 0].max() >= layers or both[:, 1].max() > last):
        raise ValueError(
            f"neurons must be within {layers} layers of {last + 1}; got (layer, index) up to "
            f"{tuple(both.max(axis=0).tolist())}"
        )
    figure = new_figure(min(5.2, max(2.4, 1.1 + 0.09 * layers)))
    place, counts = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    _marks(place, every, f"N, knowledge neurons ({len(every):,})", MIDDLE, ".", 4)
    size = 4.5 if len(dkn) <= _CROWD else 2.5
    _marks(place, dkn, f"D, neurons of DKNs ({len(dkn):,})", DARK, "D", size)
    at = np.arange(layers)
    for neurons, color in ((every, MIDDLE), (dkn, DARK)):
        counts.barh(at, np.bincount(neurons[:, 0], minlength=layers), height=0.8, color=color)
    place.set_xlim(-0.02 * last - 0.5, 1.02 * last + 0.5)
    place.set_ylim(-0.8, layers - 0.2)
    dress(place, "index of the neuron in its layer", "layer")
    dress(counts, "neurons")
    counts.tick_params(axis="y", length=0, labelleft=False)
    for axis in (place.yaxis, counts.xaxis):
        axis.get_major_locator().set_params(integer=True)
    legend(place)
    return figure


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
