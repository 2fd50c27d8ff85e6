"""Which weights a fine-tuning may change, and a model that runs with others in their place."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import require_inside, suppress
from dkn_engine.degeneracy.weight_edits import refuse_shared_weights, require_parameter
from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.models.dense import is_conv1d
from dkn_engine.models.devices import is_offloaded
from dkn_engine.models.layout import Layout

Trainable = ArrayLike | Literal["mlp", "all"]


@dataclass(frozen=True, eq=False)
class Block:
    """A part of one parameter that may change, and what stands in for the parameter meanwhile.

    Attributes:
        name, parameter: of the model; never written to.
        layer: whose MLP neurons it belongs to; None for parameters that are no neuron's.
        axis: the parameter's dimension that counts neurons.
        neurons: int64 ``[n]``, their places along it (from F on in the second half of a fused
            projection), in the order of ``values``.
        index: the same as a tensor; None for the whole parameter.
        stand_in: a copy of the parameter, with which the model runs.
        values: what is trained, and is copied to the index of ``stand_in``; or that itself.
    """

    name: str
    parameter: nn.Parameter
    layer: int | None
    axis: int
    neurons: NDArray[np.int64]
    index: Tensor | None
    stand_in: nn.Parameter
    values: Tensor

    def part(self, tensor: Tensor) -> Tensor:
        """What of a tensor like the parameter belongs to this block."""
        return tensor if self.index is None else tensor.index_select(self.axis, self.index)

    def take_gradient(self) -> None:
        """Move the gradient that a backward pass left at ``stand_in`` to ``values``.

        Raises:
            UnsupportedModelError: there is none, of an MLP's projection.
        """
        grad, self.stand_in.grad = self.stand_in.grad, None
        if grad is None and self.layer is not None:
            raise UnsupportedModelError(
                f"{self.name}: expected a weight that a forward pass reads from its module; found "
                "none that depends on it, so that it cannot be trained"
            )
        self.values.grad = None if grad is None else self.part(grad)

    @torch.no_grad()
    def put(self) -> None:
        """Let the model run with the values as they are now."""
        if self.index is not None:
            self.stand_in.index_copy_(self.axis, self.index, self.values)


def trainable_blocks(model: nn.Module, layout: Layout, trainable: Trainable) -> list[Block]:
    """The blocks of a trainable set; each value is in one block.

    Args:
        model, layout: the decoder.
        trainable: as in :func:`dkn_engine.analysis.experiments.evolvability.finetune.finetuned`.
            Tied parameters count once.

    Raises:
        TypeError, ValueError: neurons of the wrong form, or that the model has not.
        UserError: an unknown word, no neuron, or weights that are not float32 or float64.
        UnsupportedModelError: an MLP projection is not a plain matrix, is computed out of others at
            each forward, or is shared by two layers; or weights are offloaded.
    """
    for path, module in model.named_modules():
        if is_offloaded(module):
            raise UnsupportedModelError(
                f"fine-tuning needs weights in memory; those of {path!r} are offloaded: load the "
                "model onto one device"
            )
    chosen = _neurons_by_layer(layout, trainable)
    refuse_shared_weights(layout, list(chosen))
    names = {id(p): name for name, p in model.named_parameters()}
    whole = isinstance(trainable, str)
    blocks = [
        _block(names[id(parameter)], parameter, layer, axis, rows, whole)
        for layer, neurons in chosen.items()
        for parameter, axis, rows in _parameters(layout, layer, neurons)
    ]
    if isinstance(trainable, str) and trainable == "all":
        of_neurons = {id(b.parameter) for b in blocks}
        others = [(n, p) for n, p in model.named_parameters() if id(p) not in of_neurons]
        blocks += [_block(n, p, None, 0, np.empty(0, np.int64), True) for n, p in others]
    for block in blocks:
        if block.parameter.dtype not in (torch.float32, torch.float64):
            raise UserError(
                "fine-tuning takes steps that shorter numbers than float32 cannot hold; "
                f"{block.name} is {block.parameter.dtype}: load the model with dtype='float32'"
            )
    return blocks


def _neurons_by_layer(layout: Layout, trainable: Trainable) -> dict[int, NDArray[np.int64]]:
    if isinstance(trainable, str):
        if trainable not in {"mlp", "all"}:
            raise UserError(f"trainable must be neurons, 'mlp' or 'all'; got {trainable!r}")
        return {layer: np.arange(width) for layer, width in enumerate(layout.widths)}
    neurons = suppress(trainable).neurons
    require_inside([suppress(neurons)], layout)
    if not len(neurons):
        raise UserError("trainable must hold at least one neuron; got none")
    return {
        layer: np.sort(neurons[neurons[:, 0] == layer, 1]).astype(np.int64)
        for layer in np.unique(neurons[:, 0]).tolist()
    }


def _parameters(
    layout: Layout, layer: int, neurons: NDArray[np.int64]
) -> Iterator[tuple[nn.Parameter, int, NDArray[np.int64]]]:
    """A layer's weights of neurons: parameter, its dimension of neurons, their places along it."""
    mlp = layout.mlps[layer]
    # These raise for adapters and quantised weights.
    mlp.w_in(slice(0))
    mlp.w_out(slice(0))
    rows = np.concatenate([neurons, neurons + layout.widths[layer]]) if mlp.fused else neurons
    incoming = [mlp.gate] if mlp.up is None or mlp.fused else [mlp.gate, mlp.up]
    for module in incoming:
        yield _parameter(layout, layer, module, "weight"), int(is_conv1d(module)), rows
        if getattr(module, "bias", None) is not None:
            yield _parameter(layout, layer, module, "bias"), 0, rows
    yield _parameter(layout, layer, mlp.down, "weight"), 1 - int(is_conv1d(mlp.down)), neurons


def _parameter(layout: Layout, layer: int, module: nn.Module, name: str) -> nn.Parameter:
    require_parameter(layout, layer, module, name)
    parameter: nn.Parameter = getattr(module, name)
    return parameter


def _block(
    name: str,
    parameter: nn.Parameter,
    layer: int | None,
    axis: int,
    rows: NDArray[np.int64],
    whole: bool,
) -> Block:
    # A caller's inference mode would make tensors that autograd cannot keep.
    with torch.inference_mode(False), torch.no_grad():
        stand_in = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        if whole:
            return Block(name, parameter, layer, axis, rows, None, stand_in, stand_in)
        index = torch.from_numpy(rows).to(parameter.device)
        values = parameter.detach().index_select(axis, index)
    return Block(name, parameter, layer, axis, rows, index, stand_in, values)


@contextlib.contextmanager
def standing_in(model: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
    """Let the model have the blocks' copies in place of its parameters, for the block's length.

    Its own parameters, tied ones too, are not touched, and are the same objects afterwards.
    """
    stand_ins = {id(b.parameter): b.stand_in for b in blocks}
    places = [
        (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in stand_ins
    ]
    try:
        for module, name, parameter in places:
            setattr(module, name, stand_ins[id(parameter)])
        yield
    finally:
        for module, name, parameter in places:
            setattr(module, name, parameter)


def places_digest(blocks: Sequence[Block]) -> str:
    """SHA-256 of where in the model the blocks are."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(f"{block.name} {block.axis} {tuple(block.values.shape)}".encode())
        digest.update(block.neurons.tobytes())
    return digest.hexdigest()


def neuron_change(layout: Layout, blocks: Sequence[Block]) -> NDArray[np.float64]:
    """How far each neuron is from where it was: float64 ``[L, F]``.

    The L2 norm of the change over the weights of its incoming rows (gate, up) and its outgoing
    one, relative to the norm of those weights before; biases do not count. 0 outside the blocks,
    NaN for what a narrower layer does not have.
    """
    moved = np.zeros((layout.n_layers, layout.width))
    before = np.zeros_like(moved)
    for block in blocks:
        if block.layer is None or block.values.ndim < 2:
            continue
        old = block.part(block.parameter.detach())
        for table, part in ((moved, block.values.detach() - old), (before, old)):
            squares = part.square().sum(1 - block.axis, dtype=torch.float64).cpu().numpy()
            np.add.at(table[block.layer], block.neurons % layout.widths[block.layer], squares)
    change: NDArray[np.float64] = np.sqrt(moved / np.where(before > 0, before, 1))
    for layer, width in enumerate(layout.widths):
        change[layer, width:] = np.nan
    return change
