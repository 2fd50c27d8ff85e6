"""Gradients of some rows of a model's weights, without those of the whole weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dkn_engine.analysis.experiments.evolvability.trainable import Block
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout, Mlp

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def differentiable(layout: Layout, blocks: Sequence[Block]) -> Iterator[None]:
    """Let gradients reach the blocks, and nothing else: whole weights need none.

    Rows of a projection are reached by hooks that hand its output on unchanged, and on the way
    back multiply what arrives there by the projection's input at those rows alone.
    """
    whole = [b.parameter for b in blocks if b.index is None]
    rows = [b.values for b in blocks if b.index is not None]
    before = [(t, t.requires_grad) for t in (*whole, *rows)]
    by_parameter = {id(b.parameter): b for b in blocks if b.index is not None}
    handles: list[RemovableHandle] = []
    for mlp in layout.mlps:
        handles += _taps(mlp, by_parameter)
    with hooks(handles):
        try:
            for tensor, _ in before:
                tensor.requires_grad_(True)
            yield
        finally:
            for tensor, needed in before:
                tensor.requires_grad_(needed)


def _taps(mlp: Mlp, blocks: dict[int, Block]) -> list[RemovableHandle]:
    handles = []
    for module in (mlp.gate, None if mlp.fused else mlp.up, mlp.down):
        if module is None:
            continue
        weight, bias = (blocks.get(id(getattr(module, k, None))) for k in ("weight", "bias"))
        if weight is not None:
            tap = _tap_out(weight) if module is mlp.down else _tap_in(weight, bias)
            handles.append(module.register_forward_hook(tap))
    return handles


def _tap_in(weight: Block, bias: Block | None) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        values = None if bias is None else bias.values
        return _incoming(output, args[0].detach(), weight.values, values, weight.index)

    return hook


def _tap_out(weight: Block) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        return _outgoing(output, args[0].detach(), weight.values, weight.index)

    return hook


class _Incoming(torch.autograd.Function):
    """The output ``[..., F]`` of ``x W^T + b`` unchanged; gradients of rows of W and b."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, index)
        ctx.bias = bias is not None
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, index = ctx.saved_tensors
        mine = grads[0].flatten(0, -2)[:, index]  # [T, n]
        weight = mine.T @ x.flatten(0, -2)
        return grads[0], None, weight, mine.sum(0) if ctx.bias else None, None


class _Outgoing(torch.autograd.Function):
    """The output ``[..., d]`` of ``x W^T + b`` unchanged; gradients of columns of W as rows."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x[..., index])
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (mine,) = ctx.saved_tensors
        return grads[0], None, mine.flatten(0, -2).T @ grads[0].flatten(0, -2), None


# torch leaves ``apply`` without types.
_incoming: Any = _Incoming.apply
_outgoing: Any = _Outgoing.apply
