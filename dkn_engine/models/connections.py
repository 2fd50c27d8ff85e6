"""The rows of weights that connect neurons: of a fact's located ones, and of whole layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import TopologyConfig
from dkn_engine.models.layout import Layout, find_layout
from dkn_engine.models.model_lock import locked
from dkn_engine.models.projections import refuse_changed_weight

if TYPE_CHECKING:
    from torch import nn

Rows = tuple[NDArray[np.floating], NDArray[np.floating]]


def connection_rows(layout: Layout, neurons: NDArray[np.int32], config: TopologyConfig) -> Rows:
    """What each located neuron writes and reads, float ``[n, d]`` each, as the graph takes them.

    ``config.direction="reversed"`` swaps the two (released code, gated layouts).

    Raises:
        UnsupportedModelError: ``input_weights="up"`` without an up projection, ``fold_norm``
            without a gain that can be found; a hook changes what a projection gives.
    """
    w_out = np.empty((len(neurons), layout.d_model), dtype=np.float32)
    w_in = np.empty_like(w_out)
    with locked(layout.base):  # a call in another thread may have scaled weights
        for layer in np.unique(neurons[:, 0]).tolist():
            at = np.flatnonzero(neurons[:, 0] == layer)
            mlp = layout.mlps[layer]
            index = neurons[at, 1].tolist()
            for module in (mlp.down, mlp.up if config.input_weights == "up" else mlp.gate):
                if module is not None:
                    refuse_changed_weight(layout, layer, module)
            w_out[at] = mlp.w_out(index).float().cpu().numpy()
            w_in[at] = mlp.w_in(index, config.input_weights).float().cpu().numpy()
            if config.fold_norm:
                w_in[at] *= layout.norm_gain(layer).float().cpu().numpy()
    swapped = config.direction == "reversed" and layout.gated
    return (w_in, w_out) if swapped else (w_out, w_in)


def layer_weights(model: nn.Module, config: TopologyConfig | None = None) -> Sequence[Rows]:
    """What each neuron of each layer writes and reads, for a merge tree of the whole model.

    A layer's rows, two arrays float32 ``[F, d]`` of its own F, are read when they are asked for, so
    that one layer at a time is in memory; see :func:`dkn_engine.topology.model_merge_tree`.

    Args:
        model: a causal language model of a layout that the engine knows.
        config: which rows are read, by ``input_weights``, ``fold_norm`` and ``direction``; None
            for the defaults.

    Raises:
        UnsupportedModelError: an unknown layout, or rows that it does not have.
    """
    return _LayerRows(find_layout(model), config or TopologyConfig())


class _LayerRows(Sequence[Rows]):
    def __init__(self, layout: Layout, config: TopologyConfig) -> None:
        self._layout, self._config = layout, config

    def __len__(self) -> int:
        return self._layout.n_layers

    def __getitem__(self, layer: Any) -> Any:
        if not 0 <= layer < len(self):
            raise IndexError(f"layer must be from 0 to {len(self) - 1}; got {layer}")
        index = np.arange(self._layout.widths[layer])
        neurons = np.stack([np.full_like(index, layer), index], axis=1).astype(np.int32)
        return connection_rows(self._layout, neurons, self._config)
