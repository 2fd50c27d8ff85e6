"""Which weights a fine-tuning may change, as compact tensors of their own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import require_inside, suppress
from dkn_engine.degeneracy.weight_edits import refuse_shared_weights, require_parameter
from dkn_engine.errors import UserError
from dkn_engine.models.layout import Layout, is_conv1d

Trainable = ArrayLike | Literal["mlp", "all"]


@dataclass(frozen=True, eq=False)
class Block:
    """Part of one parameter that may change.

    Attributes:
        name, parameter: of the model.
        layer: whose MLP neurons it belongs to; None for parameters that are no neuron's.
        axis: the parameter's dimension that counts neurons.
        index: int64 ``[n]``, the neurons' places along it; None for the whole parameter.
        neurons: int64, indices of the neurons, one a row of :meth:`rows`.
        values: what is trained, ``[n, d]`` (``[n]`` for a bias): a copy of the rows, or the whole
            parameter's own memory.
        original: the values before training.
    """

    name: str
    parameter: nn.Parameter
    layer: int | None
    axis: int
    index: Tensor | None
    neurons: NDArray[np.int64]
    values: Tensor
    original: Tensor

    @property
    def source(self) -> Tensor:
        """The tensor that autograd differentiates by."""
        return self.parameter if self.index is None else self.values

    def rows(self, values: Tensor) -> Tensor:
        """Values of this block with one neuron a row."""
        return values.movedim(self.axis, 0) if self.index is None else values

    def write(self, values: Tensor) -> None:
        """Put values in place in the model."""
        with torch.no_grad():
            if self.index is None:
                self.parameter.detach().copy_(values)
            else:
                self.parameter.detach().movedim(self.axis, 0)[self.index] = values.detach()


def trainable_blocks(model: nn.Module, layout: Layout, trainable: Trainable) -> list[Block]:
    """The blocks of a trainable set; each value is in one block.

    Args:
        model, layout: the decoder.
        trainable: int ``[n, 2]`` (layer, index): these neurons' incoming rows (gate and up, with
            their biases) and outgoing rows of the down projection; ``"mlp"``: those of all
            neurons; ``"all"``: every parameter. Tied parameters count once.

    Raises:
        TypeError, ValueError: neurons of the wrong form, or that the model has not.
        UserError: an unknown word, no neuron, or weights that are not float32 or float64.
        UnsupportedModelError: an MLP projection is not a plain matrix, is computed out of others at
            each forward, or is shared by two layers.
    """
    if isinstance(trainable, str):
        if trainable not in {"mlp", "all"}:
            raise UserError(f"trainable must be neurons, 'mlp' or 'all'; got {trainable!r}")
        refuse_shared_weights(layout, list(range(layout.n_layers)))
        blocks = [b for layer in range(layout.n_layers) for b in _of_layer(layout, layer, None)]
    else:
        neurons = suppress(trainable).neurons
        require_inside([suppress(neurons)], layout)
        if not len(neurons):
            raise UserError("trainable must hold at least one neuron; got none")
        layers = np.unique(neurons[:, 0]).tolist()
        refuse_shared_weights(layout, layers)
        blocks = [
            block
            for layer in layers
            for block in _of_layer(layout, layer, np.sort(neurons[neurons[:, 0] == layer, 1]))
        ]
    names = {id(p): name for name, p in model.named_parameters()}
    blocks = [_named(block, names) for block in blocks]
    if isinstance(trainable, str) and trainable == "all":
        mine = {id(b.parameter) for b in blocks}
        blocks += [_whole(p, n, None) for n, p in model.named_parameters() if id(p) not in mine]
    for block in blocks:
        if block.parameter.dtype not in (torch.float32, torch.float64):
            raise UserError(
                "fine-tuning takes steps that shorter numbers than float32 cannot hold; "
                f"{block.name} is {block.parameter.dtype}: load the model with dtype='float32'"
            )
    return blocks


def _of_layer(layout: Layout, layer: int, index: NDArray[np.int32] | None) -> list[Block]:
    """What belongs to some neurons of a layer, or to all of them."""
    mlp = layout.mlps[layer]
    chosen = np.arange(layout.width) if index is None else index.astype(np.int64)
    incoming = [mlp.gate] if mlp.up is None or mlp.fused else [mlp.gate, mlp.up]
    twice = np.concatenate([chosen, chosen + layout.width]) if mlp.fused else chosen
    found = []
    for module in incoming:
        weight, axis = _weight(layout, layer, module)
        found.append(_block(weight, layer, axis, twice, twice % layout.width, index is None))
        bias = getattr(module, "bias", None)
        if bias is not None:
            require_parameter(layout, layer, module, "bias")
            found.append(_block(bias, layer, 0, twice, twice % layout.width, index is None))
    weight, axis = _weight(layout, layer, mlp.down)
    found.append(_block(weight, layer, 1 - axis, chosen, chosen, index is None))
    return found


def _weight(layout: Layout, layer: int, module: nn.Module) -> tuple[nn.Parameter, int]:
    """A projection's matrix and its dimension of outputs: 0, or 1 in a Conv1D."""
    # These raise for adapters and quantised weights.
    layout.mlps[layer].w_in(slice(0))
    layout.mlps[layer].w_out(slice(0))
    require_parameter(layout, layer, module, "weight")
    weight: Any = module.weight
    return weight, 1 if is_conv1d(module) else 0


def _block(
    parameter: nn.Parameter,
    layer: int,
    axis: int,
    index: NDArray[np.int64],
    neurons: NDArray[np.int64],
    whole: bool,
) -> Block:
    if whole:
        return _whole(parameter, "", layer, axis, neurons)
    # A caller's inference mode would make tensors that autograd cannot keep.
    with torch.inference_mode(False), torch.no_grad():
        at = torch.from_numpy(index).to(parameter.device)
        values = parameter.detach().movedim(axis, 0)[at].contiguous()
    return Block("", parameter, layer, axis, at, neurons, values, values.clone())


def _whole(
    parameter: nn.Parameter,
    name: str,
    layer: int | None,
    axis: int = 0,
    neurons: NDArray[np.int64] | None = None,
) -> Block:
    with torch.inference_mode(False), torch.no_grad():
        values = parameter.detach()
        nobody = np.empty(0, dtype=np.int64)
        mine = nobody if neurons is None else neurons
        return Block(name, parameter, layer, axis, None, mine, values, values.clone())


def _named(block: Block, names: dict[int, str]) -> Block:
    return dataclasses.replace(block, name=names[id(block.parameter)])


def digest_of_rest(model: nn.Module, blocks: Sequence[Block]) -> str:
    """SHA-256 of every weight that is in no block, names included."""
    by_parameter = {id(b.parameter): b for b in blocks}
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        block = by_parameter.get(id(parameter))
        kept = parameter.detach()
        if block is not None:
            if block.index is None:
                continue
            kept = kept.clone().index_fill_(block.axis, block.index, 0)
        digest.update(name.encode())
        digest.update(_bytes(kept))
    return digest.hexdigest()


def digest_of_originals(blocks: Sequence[Block]) -> str:
    """SHA-256 of the blocks as they were, and of where they are."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(f"{block.name} {block.axis} {tuple(block.original.shape)}".encode())
        if block.index is not None:
            digest.update(_bytes(block.index))
        digest.update(_bytes(block.original))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def neuron_change(layout: Layout, blocks: Sequence[Block]) -> NDArray[np.float64]:
    """How far each neuron is from where it was: float64 ``[L, F]``.

    The L2 norm of the change over the weights of its incoming rows (gate, up) and its outgoing
    one, relative to the norm of those weights before; biases do not count. 0 outside the blocks.
    """
    moved = np.zeros((layout.n_layers, layout.width))
    before = np.zeros_like(moved)
    for block in blocks:
        if block.layer is None or block.original.ndim < 2:
            continue
        old, new = block.rows(block.original), block.rows(block.values)
        for table, part in ((moved, new - old), (before, old)):
            squares = part.detach().square().sum(1, dtype=torch.float64).cpu().numpy()
            np.add.at(table[block.layer], block.neurons, squares)
    change: NDArray[np.float64] = np.sqrt(moved / np.where(before > 0, before, 1))
    return change
