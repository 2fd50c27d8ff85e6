"""Neurons scaled in the weights themselves, and put back bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.degeneracy.edits import enhance, require_inside
from dkn_engine.layout import Layout, Mlp

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def scaled_neurons(layout: Layout, neurons: NDArray[np.int32], factor: float) -> Iterator[None]:
    """Multiply what each neuron reads and what it writes by ``factor``, for the block's length.

    What it reads is its row of the projection into the non-linearity (the gate of a gated MLP) and
    that projection's bias; a gated MLP's linear factor stays. With 0 the neuron writes nothing at
    any position, as if its activation were suppressed everywhere. Any other factor is not the
    same as one on the activation, since the non-linearity stands between.

    Args:
        layout: of the model, whose weights are changed in place.
        neurons: int32 ``[n, 2]`` (layer, index), distinct.
        factor: 0 suppresses.

    Raises:
        TypeError, ValueError: neurons of the wrong form, or that the model lacks.
    """
    import torch

    edit = enhance(neurons, factor)
    require_inside([edit], layout)
    saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    try:
        # The caller may be inside torch.inference_mode.
        with torch.inference_mode(False), torch.no_grad():
            for layer in np.unique(edit.neurons[:, 0]).tolist():
                index = torch.from_numpy(edit.neurons[edit.neurons[:, 0] == layer, 1].astype(int))
                for rows in _views(layout.mlps[layer]):
                    at = index.to(rows.device)
                    saved.append((rows, at, rows[at].clone()))
                    rows[at] *= factor
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for rows, at, old in reversed(saved):
                rows[at] = old


def _views(mlp: Mlp) -> list[torch.Tensor]:
    """Views of the MLP's weights with neurons along the first axis: ``[F, d]`` or ``[F]``."""
    found = [mlp.w_in(slice(None)), mlp.w_out(slice(None))]
    bias: Any = getattr(mlp.gate, "bias", None)
    if bias is not None:
        found.append(bias.detach()[: found[0].shape[0]])
    return found
