"""Gradients of the rows of a weight that are trained, without those of all its others.

Of a projection y = W x the gradient is a product of the outputs' gradients and the inputs, as large
as W. Where some neurons' rows (or columns) are trained, those outputs (or inputs) are enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dkn_engine.analysis.experiments.evolvability.trainable import Block
from dkn_engine.forward.row_check import is_plain
from dkn_engine.models.dense import is_conv1d, is_dense
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn

_ALLOWED = 1e-4  # of a gradient's length; products of other shapes round otherwise


class RowGradients:
    """Gradients of what is trained, by rows where those are what a plain backward pass gives.

    The first step computes both, and compares. Whole parameters, a model that runs other code than
    torch's and transformers' own, and a weight that its module is not what reads keep to the plain
    way, the gradient of the whole stand-in.

    Args:
        model, layout: that the blocks belong to.
        blocks: what is trained.
    """

    def __init__(self, model: nn.Module, layout: Layout, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        rows = [b for b in blocks if b.index is not None] if is_plain(layout) else []
        modules = [model.get_submodule(b.name.rpartition(".")[0]) for b in rows]
        self._watched = {b: m for b, m in zip(rows, modules, strict=True) if is_dense(m)}
        self._tried = False

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Backward passes in the block leave what :meth:`take` needs."""
        leaves = [*(b.stand_in for b in self._blocks), *(b.values for b in self._watched)]
        before = [leaf.requires_grad for leaf in leaves]
        watching = [m.register_forward_hook(self._watch(b)) for b, m in self._watched.items()]
        try:
            for leaf in leaves:
                leaf.requires_grad_(True)
            with hooks(watching):
                yield
        finally:
            for leaf, needed in zip(leaves, before, strict=True):
                leaf.requires_grad_(needed)

    def _watch(self, block: Block) -> Callable[..., Any]:
        def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Any:
            if block not in self._watched:
                return None
            return _Rows.apply(output, block.values, args[0].detach(), block, is_conv1d(module))  # type: ignore[no-untyped-call]

        return watch

    def take(self) -> None:
        """Leave each block's gradient with its values.

        Raises:
            UnsupportedModelError: an MLP's projection has none.
        """
        for block in self._blocks:
            of_rows = block.values.grad if block in self._watched else None
            if self._tried and block in self._watched:
                continue
            block.take_gradient()
            if of_rows is not None and _alike(of_rows, block.values.grad):
                block.values.grad = of_rows
                block.stand_in.requires_grad_(False)
            else:
                self._watched.pop(block, None)
        self._tried = True


def _alike(of_rows: Tensor, whole: Tensor | None) -> bool:
    return whole is not None and bool((of_rows - whole).norm() <= _ALLOWED * whole.norm())


class _Rows(torch.autograd.Function):
    """A projection's output as it is, whose backward pass gives a block's values their gradient."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, values: Tensor, x: Tensor, block: Block, conv1d: bool
    ) -> Tensor:
        ctx.conv1d, ctx.of_bias = conv1d, values.ndim == 1
        # Neurons are outputs of the projections into the non-linearity, inputs of the one out.
        ctx.of_output = ctx.of_bias or (block.axis == 0) != conv1d
        assert block.index is not None
        x = x if ctx.of_output else x.index_select(-1, block.index)
        ctx.save_for_backward(x, block.index)
        # No view, which a layer may not add to in place, as Falcon does.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, index = ctx.saved_tensors
        out = gradient.index_select(-1, index) if ctx.of_output else gradient
        x, out = x.reshape(-1, x.shape[-1]), out.reshape(-1, out.shape[-1])
        if ctx.of_bias:
            return gradient, out.sum(0), None, None, None
        return gradient, x.T @ out if ctx.conv1d else out.T @ x, None, None, None
