"""Interventions on MLP neurons as data: activation <- factor * activation + offset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dkn_engine.models.layout import Layout
from dkn_engine.neurons import as_distinct_neurons


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What changes at the input of the down projections (the ``post`` site).

    A zero there is also what a zero at the input of gelu, silu or relu gives.

    Attributes:
        neurons: int32 ``[n, 2]`` (layer, index), distinct.
        factor, offset: float64 ``[n]``.
    """

    neurons: NDArray[np.int32]
    factor: NDArray[np.float64]
    offset: NDArray[np.float64]


def nothing() -> Edit:
    """The edit that leaves a model as it is."""
    return suppress(np.empty((0, 2), dtype=np.int32))


def suppress(neurons: ArrayLike, means: NDArray[np.floating] | None = None) -> Edit:
    """Activations become 0, or ``means[layer, index]`` of a table ``[L, F]``.

    Raises:
        TypeError, ValueError: ``neurons`` are not distinct integers ``[n, 2]``.
    """
    array = as_distinct_neurons(neurons)
    offset = np.zeros(len(array))
    if means is not None:
        offset = means[array[:, 0], array[:, 1]].astype(np.float64)
    return Edit(array, np.zeros(len(array)), offset)


def enhance(neurons: ArrayLike, factor: float) -> Edit:
    """Activations are multiplied by ``factor``; errors as in :func:`suppress`."""
    array = as_distinct_neurons(neurons)
    return Edit(array, np.full(len(array), float(factor)), np.zeros(len(array)))


def combine(*edits: Edit) -> Edit:
    """All edits at once.

    Raises:
        ValueError: two of them change the same neuron.
    """
    return Edit(
        as_distinct_neurons(np.concatenate([e.neurons for e in edits])),
        np.concatenate([e.factor for e in edits]),
        np.concatenate([e.offset for e in edits]),
    )


def require_inside(edits: Sequence[Edit], layout: Layout) -> None:
    """Check that the model has every neuron.

    Raises:
        ValueError: names the first that it has not.
    """
    if not edits:
        return
    every = np.concatenate([edit.neurons for edit in edits])
    if (found := layout.missing(every)) is not None:
        raise ValueError(found)


@dataclass(frozen=True, slots=True, eq=False)
class LayerEdit:
    """All edits of one layer: entry k changes neuron ``index[k]`` in rows of edit ``row[k]``."""

    row: NDArray[np.int64]
    index: NDArray[np.int64]
    factor: NDArray[np.float64]
    offset: NDArray[np.float64]


def change(x: Tensor, edit: LayerEdit, where: Tensor | None = None) -> None:
    """Apply an edit in place to activations ``[..., R, F]`` of R rows, ``where`` bool ``[..., R]``.

    None is everywhere.
    """
    row, index = (torch.from_numpy(a).to(x.device) for a in (edit.row, edit.index))
    factor, offset = (torch.from_numpy(a).to(x) for a in (edit.factor, edit.offset))
    old = x[..., row, index]
    # What overflowed becomes 0, too, and not 0 times that.
    new = torch.where(factor == 0, offset, old * factor + offset)
    if where is not None:
        new = torch.where(where.to(x.device)[..., row], new, old)
    x[..., row, index] = new


def changing(edit: LayerEdit, view: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
    """A forward pre-hook that applies an edit to inputs, of which ``view`` is ``[..., R, F]``."""

    def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        change(view(x), edit)
        return (x, *args[1:])

    return hook


def by_layer(edits: Sequence[Edit]) -> dict[int, LayerEdit]:
    """A list of edits, layer by layer; layers that none of them changes are absent."""
    layer = np.concatenate([e.neurons[:, 0] for e in edits])
    row = np.repeat(np.arange(len(edits)), [len(e.neurons) for e in edits])
    index = np.concatenate([e.neurons[:, 1] for e in edits]).astype(np.int64)
    factor = np.concatenate([e.factor for e in edits])
    offset = np.concatenate([e.offset for e in edits])
    return {
        int(l): LayerEdit(row[at], index[at], factor[at], offset[at])
        for l in np.unique(layer)
        for at in [np.flatnonzero(layer == l)]
    }
