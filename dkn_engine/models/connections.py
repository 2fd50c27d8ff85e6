"""The rows of the model's weights that connect located neurons, gathered for the graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import TopologyConfig
from dkn_engine.models.layout import Layout
from dkn_engine.models.model_lock import locked
from dkn_engine.models.projections import refuse_changed_weight


def connection_rows(
    layout: Layout, neurons: NDArray[np.int32], config: TopologyConfig
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """What each located neuron writes and reads, float ``[n, d]`` each, as the graph takes them.

    ``config.direction="reversed"`` swaps the two (released code, gated layouts).

    Raises:
        UnsupportedModelError: ``input_weights="up"`` without an up projection, ``fold_norm``
            without a gain that can be found; a hook changes what a projection gives.
    """
    with locked(layout.base):  # a call in another thread may have scaled weights
        w_out, w_in = _gathered(layout, neurons, config)
    if config.direction == "reversed" and layout.gated:
        return w_in, w_out
    return w_out, w_in


def _gathered(
    layout: Layout, neurons: NDArray[np.int32], config: TopologyConfig
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    w_out = np.empty((len(neurons), layout.d_model), dtype=np.float32)
    w_in = np.empty_like(w_out)
    for layer in np.unique(neurons[:, 0]):
        at = np.flatnonzero(neurons[:, 0] == layer)
        mlp = layout.mlps[layer]
        index = neurons[at, 1].tolist()
        for module in (mlp.down, mlp.up if config.input_weights == "up" else mlp.gate):
            if module is not None:
                refuse_changed_weight(layout, int(layer), module)
        w_out[at] = mlp.w_out(index).float().cpu().numpy()
        w_in[at] = mlp.w_in(index, config.input_weights).float().cpu().numpy()
        if config.fold_norm:
            w_in[at] *= layout.norm_gain(int(layer)).float().cpu().numpy()
    return w_out, w_in
