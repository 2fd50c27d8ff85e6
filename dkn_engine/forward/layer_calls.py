"""A decoder's layers called again, over other batches of a chunk's sequences.

What a model hands to its layers beside the hidden states (position ids, masks, rotary embeddings,
ALiBi) is kept from its own forward. Which axis of a tensor counts the sequences is not believed of
its name: it is the one that is longer or shorter where the model reads another number of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.patched_rows import SweepUnsupported
from dkn_engine.forward.prefill import Prefill, token_log_probabilities
from dkn_engine.forward.stand_ins import HandsOn
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from dkn_engine.models.torch_internals import class_forward, replaced

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class LayerCalls:
    """The layers of one chunk's model, each with what the model itself gave it.

    Args:
        layout: the decoder.
        shape: B and T of the tokens that it read.
        calls: what each layer was called with.
        other: the same where it read :func:`other_number` sequences.
        prefix: the cache of what stands in front of these tokens, where something does.

    Raises:
        SweepUnsupported: a layer is given something of which it is not known what belongs to
            which sequence.
    """

    def __init__(
        self,
        layout: Layout,
        shape: Sequence[int],
        calls: Sequence[inspect.BoundArguments],
        other: Sequence[inspect.BoundArguments],
        prefix: Any = None,
    ) -> None:
        self.layout, self._calls, self._other, self._prefix = layout, calls, other, prefix
        self._n, length = shape
        self._n_other = other_number(self._n)
        for i in range(layout.n_layers):
            entering = self.entering(i)
            if not isinstance(entering, Tensor) or entering.shape[:-1] != (self._n, length):
                raise SweepUnsupported(f"layer {i} does not take hidden states [B, T, d]")
            self._arguments(i, torch.zeros(1, dtype=torch.int64, device=entering.device))

    def entering(self, layer: int) -> Any:
        """What entered a layer in the model's own pass, ``[B, T, d]``."""
        return next(iter(self._calls[layer].arguments.values()))

    def run(self, layer: int, hidden: Tensor, sequence: Tensor) -> Tensor:
        """What a layer makes of hidden states ``[n, T, d]`` of sequences ``[n]``: the same shape.

        Raises:
            SweepUnsupported: it returns something else.
        """
        arguments = self._arguments(layer, sequence)
        arguments[next(iter(arguments))] = hidden
        call = inspect.BoundArguments(self._calls[layer].signature, arguments)
        if self._prefix is not None:
            self._prefix.sequence = sequence
        out = self.layout.layers[layer](*call.args, **call.kwargs)
        if isinstance(out, tuple) and out:
            out = out[0]
        if not isinstance(out, Tensor) or out.shape != hidden.shape:
            raise SweepUnsupported(f"layer {layer} does not return hidden states [B, T, d]")
        return out

    def _arguments(self, layer: int, sequence: Tensor) -> dict[str, Any]:
        own, other = (calls[layer].arguments for calls in (self._calls, self._other))
        first = next(iter(own))
        # The hidden states are exchanged, so they need not be picked.
        return {
            name: value
            if name == first
            else self._of(value, other.get(name), sequence, f"layer {layer} takes {name!r}")
            for name, value in own.items()
        }

    def _of(self, value: Any, other: Any, sequence: Tensor, where: str) -> Any:
        """The part of an argument that belongs to sequences ``[n]``."""
        if value is self._prefix:
            return value
        if isinstance(value, Tensor):
            return self._picked(value, other, sequence, where)
        if type(value) is not type(other) or (
            isinstance(value, tuple | list | dict) and len(value) != len(other)
        ):
            raise SweepUnsupported(f"{where}, which depends on the number of sequences")
        if isinstance(value, dict):
            return {k: self._of(v, other.get(k), sequence, where) for k, v in value.items()}
        if type(value) in {tuple, list}:
            pairs = zip(value, other, strict=True)
            return type(value)(self._of(v, o, sequence, where) for v, o in pairs)
        if not isinstance(value, _PLAIN):
            raise SweepUnsupported(f"{where}, a {type(value).__name__}")
        return value

    def _picked(self, value: Tensor, other: Any, sequence: Tensor, where: str) -> Tensor:
        shape = other.shape if isinstance(other, Tensor) else ()
        axes = [i for i, n in enumerate(value.shape) if shape[i : i + 1] != (n,)]
        if len(shape) != value.ndim or len(axes) > 1:
            raise SweepUnsupported(f"{where}, whose shape depends on the sequences in several ways")
        if not axes:
            return value
        (axis,) = axes
        # Several entries a sequence where heads are counted with them.
        each = value.shape[axis] // self._n
        if (value.shape[axis], shape[axis]) != (each * self._n, each * self._n_other):
            raise SweepUnsupported(f"{where}, which does not count its sequences")
        apart: Tensor = value.unflatten(axis, (self._n, each))
        return apart.index_select(axis, sequence.to(apart.device)).flatten(axis, axis + 1)


def other_number(n: int) -> int:
    """Another number of sequences: one, or two where there is one."""
    return 2 if n == 1 else 1


def whole_calls(layout: Layout, contexts: Contexts, clean: Prefill) -> LayerCalls:
    """The layers of the model's own pass over a chunk.

    Raises:
        SweepUnsupported: see :class:`LayerCalls`.
    """
    some = contexts.of_first(other_number(len(contexts.ids)))
    read = partial(token_log_probabilities, layout.model, some)
    # A decoder of T5 hands on from layer to layer what its first makes of the positions.
    other = handed_on(layout, clean, read) if layout.encoder is None else called(layout, read)
    return LayerCalls(layout, contexts.ids.shape, clean.calls, other)


@torch.no_grad()
def handed_on(
    layout: Layout, clean: Prefill, forward: Callable[[], object]
) -> list[inspect.BoundArguments]:
    """What the layers would be called with in a forward pass, in which they do not run.

    Raises:
        SweepUnsupported: they are not called one after the other.
    """
    stand_ins = [HandsOn(layer, in_tuples=clean.in_tuples) for layer in layout.layers]
    with replaced(layout.base, layout.stack, nn.ModuleList(stand_ins)):
        forward()
    calls = [stand_in.call for stand_in in stand_ins if stand_in.call is not None]
    if len(calls) < layout.n_layers:
        raise SweepUnsupported("its layers are not run one after the other")
    return calls


@torch.no_grad()
def called(layout: Layout, forward: Callable[[], object]) -> list[inspect.BoundArguments]:
    """What a forward pass calls the layers with, each before hooks of its own."""
    calls: list[Any] = [None] * layout.n_layers

    def enter(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[layer] = inspect.signature(class_forward(module)).bind(*args, **kwargs)

    handles = [
        layer.register_forward_pre_hook(partial(enter, i), with_kwargs=True, prepend=True)
        for i, layer in enumerate(layout.layers)
    ]
    with hooks(handles):
        forward()
    return calls
