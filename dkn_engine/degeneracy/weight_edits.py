"""Neurons scaled in the weights themselves, and put back bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from dkn_engine.degeneracy.edits import enhance, require_inside
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.dense import require_dense
from dkn_engine.models.devices import stored, writable
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from dkn_engine.models.model_lock import locked
from dkn_engine.models.projections import refuse_unless_run

Which = Literal["output_weights", "input_and_output_weights"]


@contextlib.contextmanager
def scaled_weights(
    layout: Layout, neurons: ArrayLike, factor: float, which: Which
) -> Iterator[None]:
    """Multiply weights of each neuron by ``factor``, for the block's length.

    Blocks of one thread that overlap act together, in the order of entry, and may end in any.

    A neuron's output weights are its row of the down projection: scaling them is the same as
    scaling its activation everywhere. Its input weights are its row of the projection into the
    non-linearity (the gate of a gated MLP) and that projection's bias; a gated MLP's linear factor
    stays. With both and a factor of 0 the neuron writes nothing at any position, as with its
    output weights alone; any other factor is not the same, since the non-linearity is between.

    Raises:
        TypeError, ValueError: neurons that are not distinct integers ``[n, 2]`` (layer, index), or
            that the model lacks.
        UnsupportedModelError: weights that are computed anew at each forward, or that a layer
            shares with another; or, in a forward pass of the block, a projection of these weights
            that its MLP does not run, since it may keep a copy of them.
    """
    edit = enhance(neurons, factor)
    require_inside([edit], layout)
    layers = np.unique(edit.neurons[:, 0]).tolist()
    with locked(layout.base), contextlib.ExitStack() as held:
        refuse_shared_weights(layout, layers)
        parts = {layer: _parts(layout, layer, which) for layer in layers}
        for part in (part for of_layer in parts.values() for part in of_layer):
            held.enter_context(writable(part))
        views = {layer: _views(layout, layer, which) for layer in layers}
        for layer in layers:
            held.enter_context(hooks(refuse_unless_run(layout, layer, parts[layer])))
            index = edit.neurons[edit.neurons[:, 0] == layer, 1].astype(int)
            for rows in views[layer]:
                at = torch.from_numpy(index).to(rows.device)
                held.enter_context(_acting(_Scaling(rows, at, factor)))
        yield


class _Scaling:
    """Some rows of one weight, multiplied by a factor.

    Attributes:
        key: of the memory that the weight is in.
    """

    def __init__(self, rows: torch.Tensor, at: torch.Tensor, factor: float) -> None:
        self._rows, self._at, self._factor = rows, at, factor
        self.key = rows.untyped_storage().data_ptr()

    def keep(self) -> None:
        """Keep what the rows are now."""
        self._before = self._rows[self._at].clone()

    def apply(self) -> None:
        self._rows[self._at] *= self._factor

    def undo(self) -> None:
        """Put back what was kept."""
        self._rows[self._at] = self._before


# By the memory that they change, in the order of entry; who holds the model's lock changes them.
_scalings: dict[int, list[_Scaling]] = {}


@contextlib.contextmanager
def _acting(scaling: _Scaling) -> Iterator[None]:
    """Scale for the block's length, whatever the order in which blocks of one thread end.

    Such blocks (of asyncio tasks, say) need not nest. What one of them found is then no longer
    what is to be put back, so the later ones are undone first, and applied again afterwards.
    """
    with _writing():
        scaling.keep()
    stack = _scalings.setdefault(scaling.key, [])
    stack.append(scaling)
    try:
        with _writing():
            scaling.apply()
        yield
    finally:
        later = stack[stack.index(scaling) + 1 :]
        with _writing():
            for other in reversed([scaling, *later]):
                other.undo()
            stack.remove(scaling)
            for other in later:
                other.keep()
                other.apply()
        if not stack:
            del _scalings[scaling.key]


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """In which weights may be changed, also if the caller is inside torch.inference_mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _parts(layout: Layout, layer: int, which: Which) -> list[nn.Module]:
    """The projections whose weights are scaled."""
    mlp = layout.mlps[layer]
    found = [mlp.down] if which == "output_weights" else [mlp.down, mlp.gate]
    for part in found:
        require_parameter(layout, layer, part, "weight")
    return found


def _views(layout: Layout, layer: int, which: Which) -> list[torch.Tensor]:
    """Views of the MLP's weights with neurons along the first axis: ``[F, d]`` or ``[F]``."""
    mlp = layout.mlps[layer]
    found = [mlp.w_out(slice(None), kept=True)]
    if which == "input_and_output_weights":
        found.append(mlp.w_in(slice(None), kept=True))
        if getattr(mlp.gate, "bias", None) is not None:
            require_parameter(layout, layer, mlp.gate, "bias")
            found.append(stored(mlp.gate, "bias")[: found[0].shape[0]])
    return found


def require_parameter(layout: Layout, layer: int, module: nn.Module, name: str) -> None:
    """Refuse a weight that is made out of others at each forward, where a change would be lost.

    Raises:
        UnsupportedModelError: names the module; or it is no dense projection at all.
    """
    require_dense(module)  # an adapter has no parameter either
    if module._parameters.get(name) is None:
        raise UnsupportedModelError(
            f"{layout.name_of(layer, module)}: expected a {name} that is a parameter; found one "
            "that is computed anew at each forward (by pruning or a parametrization), where a "
            "change would be lost: make it permanent with torch.nn.utils.prune.remove or "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )


def refuse_shared_weights(layout: Layout, layers: list[int]) -> None:
    """Refuse weights of the layers' MLPs that another layer uses too, and would change with them.

    Raises:
        UnsupportedModelError: names both.
    """
    users: dict[int, tuple[int, nn.Module]] = {}
    for layer, mlp in enumerate(layout.mlps):
        for module in filter(None, (mlp.down, mlp.gate, mlp.up)):
            for parameter in module.parameters(recurse=False):
                other, where = users.setdefault(id(parameter), (layer, module))
                if other != layer and {other, layer} & set(layers):
                    raise UnsupportedModelError(
                        f"expected each layer to have weights of its own; found those of "
                        f"{layout.name_of(other, where)} and {layout.name_of(layer, module)} to be "
                        "the same: change activations instead, or copy the weights"
                    )
