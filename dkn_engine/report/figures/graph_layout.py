"""Where the neurons of a graph stand: rows of layers, the members of a component together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.neurons import adjacent_pairs, encode

_GAP = 0.5  # of a row's height, where layers without located neurons lie between


@dataclass(frozen=True, eq=False)
class Places:
    """Where each neuron stands.

    Attributes:
        x: float64 ``[n]`` of each neuron, in the unit of the widths.
        y: float64 ``[n]``, in rows from the bottom.
        height: in rows.
        layers: those with neurons, with the middle of their rows.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    height: float
    layers: dict[int, float]


def place_neurons(
    neurons: NDArray[np.int32],
    lanes: NDArray[np.int64],
    weights: NDArray[np.floating],
    widths: NDArray[np.float64],
    room: float,
) -> Places:
    """Layers upwards, each in as many rows as it takes; within a row from lane to lane.

    In a lane neurons stand in the order of the middle of their connections to the layer below, so
    that wide edges cross little; nothing is nearer to its neighbour than half of both widths.

    Args:
        neurons: int32 ``[n, 2]`` (layer, index), distinct.
        lanes: int64 ``[n]``, from 0.
        weights: float ``[m]`` of :func:`dkn_engine.neurons.adjacent_pairs`, 0 or more.
        widths: float64 ``[n]``, what each neuron takes with its label.
        room: width of a row; one neuron fits always.
    """
    x, y, layers = np.zeros(len(neurons)), np.zeros(len(neurons)), {}
    centres = _centres(neurons, lanes, widths, room)
    pairs, bottom, before = adjacent_pairs(neurons), 0.0, None
    for layer in np.unique(neurons[:, 0]).tolist():
        bottom += _GAP if before is not None and layer > before + 1 else 0
        members = np.flatnonzero(neurons[:, 0] == layer)
        middle = _middles(members, pairs, weights, x)
        order = members[np.lexsort((encode(neurons)[members], middle, lanes[members]))]
        rows = _rows(order, widths, room)
        for row in rows:
            x[row], y[row] = _spread(row, lanes, widths, centres, room), bottom
            bottom += 1
        layers[layer], before = bottom - (len(rows) + 1) / 2, layer
    return Places(x, y, bottom, layers)


def _centres(
    neurons: NDArray[np.int32],
    lanes: NDArray[np.int64],
    widths: NDArray[np.float64],
    room: float,
) -> NDArray[np.float64]:
    """The middle of each lane, as wide in proportion as its neurons in the fullest layer."""
    wide = np.zeros((int(neurons[:, 0].max(initial=0)) + 1, int(lanes.max(initial=0)) + 1))
    np.add.at(wide, (neurons[:, 0], lanes), widths)
    lane = np.minimum(wide.max(axis=0), room)
    lane *= room / max(lane.sum(), np.finfo(float).tiny)
    found: NDArray[np.float64] = np.cumsum(lane) - lane / 2
    return found


def _middles(
    members: NDArray[np.int64],
    pairs: NDArray[np.int64],
    weights: NDArray[np.floating],
    x: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The weighted middle of each neuron's connections downwards; infinite without any."""
    total, moment = np.zeros(len(x)), np.zeros(len(x))
    np.add.at(total, pairs[:, 1], weights)
    np.add.at(moment, pairs[:, 1], weights * x[pairs[:, 0]])
    with np.errstate(invalid="ignore", divide="ignore"):
        middle: NDArray[np.float64] = np.where(total > 0, moment / total, np.inf)[members]
    return middle


def _rows(
    order: NDArray[np.int64], widths: NDArray[np.float64], room: float
) -> list[NDArray[np.int64]]:
    """Neurons in their order, to each row as many as fit."""
    rows: list[list[int]] = []
    left = 0.0
    for i in order.tolist():
        if not rows or widths[i] > left:
            rows.append([])
            left = room
        rows[-1].append(i)
        left -= widths[i]
    return [np.array(row) for row in rows]


def _spread(
    row: NDArray[np.int64],
    lanes: NDArray[np.int64],
    widths: NDArray[np.float64],
    centres: NDArray[np.float64],
    room: float,
) -> NDArray[np.float64]:
    """Middles of a row's neurons: around their lanes' middles, in order, nothing overlapping."""
    wide = widths[row]
    start = np.cumsum(wide) - wide / 2  # if all stood side by side from 0
    own = np.array([start[lanes[row] == lane].mean() for lane in lanes[row]])
    # Beside its own lane's neighbours everything stands tight; only lanes move as a whole.
    shift = _nondecreasing(centres[lanes[row]] - own, wide)
    return start + np.clip(shift, 0, max(room - float(wide.sum()), 0))


def _nondecreasing(values: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest values, by weighted least squares, that do not fall (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), by.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            v, w, n = blocks.pop()
            both = w + block[1]
            block = ((v * w + block[0] * block[1]) / both, both, n + block[2])
        blocks.append(block)
    return np.repeat([v for v, _, _ in blocks], [n for *_, n in blocks])
