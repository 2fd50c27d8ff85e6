"""The weights that connect located neurons of adjacent layers, which a run keeps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dkn_engine.neurons import encode


def adjacent_weights(
    neurons: NDArray[np.int32], w_out: NDArray[np.floating], w_in: NDArray[np.floating]
) -> NDArray[np.float32]:
    """``w_out[a] . w_in[b]`` of :func:`dkn_engine.neurons.adjacent_pairs`, float32 1-D.

    Accumulated in float64. Arguments as in :func:`dkn_engine.topology.distances`.
    """
    order = np.argsort(encode(neurons), kind="stable")
    layers, out, in_ = neurons[order, 0], w_out[order], w_in[order]
    found = [np.empty(0)]
    for layer in np.unique(layers).tolist():
        low = out[layers == layer].astype(np.float64)
        high = in_[layers == layer + 1].astype(np.float64)
        found.append((low @ high.T).ravel())
    return np.concatenate(found).astype(np.float32)
