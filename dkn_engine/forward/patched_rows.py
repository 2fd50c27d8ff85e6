"""The model's own layers over *rows*: positions that see a clean prefix and themselves.

In a causal decoder a change at position t of layer l reaches, of position t's own future, only
position t of the layers above. So a changed token is one row that attends to the prefix's keys
and values; the decoder layers run unchanged, through transformers' attention interface.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.head import model_tail
from dkn_engine.forward.prefill import (
    POSITION_ARGUMENTS,
    Prefill,
    of_this_thread,
    register,
)
from dkn_engine.forward.row_blocks import Block, block_attention
from dkn_engine.models.devices import at
from dkn_engine.models.guest import attention_implementation
from dkn_engine.models.layout import Layout
from dkn_engine.ops.prefix_attention import prefix_attention

if TYPE_CHECKING:
    from torch import Tensor

ROWS = "dkn_engine_rows"
_local = threading.local()
_CACHE_ARGUMENTS = {"past_key_values", "past_key_value", "layer_past", "cache_params"}
_ATTENTION_ARGUMENTS = {
    "dropout",
    "scaling",
    "softcap",
    "sliding_window",
    "is_causal",
    "use_cache",
    "position_ids",
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "logits_to_keep",
}


class SweepUnsupported(Exception):
    """This model cannot be swept; the message says why, the general path does it instead."""


@dataclass(frozen=True, eq=False)
class RowSet:
    """Which context each row belongs to.

    Attributes:
        context: int64 ``[B, R]`` for hidden states ``[B, R, d]``, or ``[B, 1]`` where all rows of
            a batch entry share one context.
        aligned: batch entry b holds rows of one context only, ``context[b, 0]``.
    """

    context: Tensor
    aligned: bool

    def to(self, device: torch.device) -> RowSet:
        return RowSet(self.context.to(device), self.aligned)


class RowEngine:
    """Runs rows of one chunk through single layers and through the model's tail."""

    def __init__(
        self, model: nn.Module, layout: Layout, contexts: Contexts, clean: Prefill, backend: str
    ) -> None:
        self.model, self.layout, self.contexts, self.clean = model, layout, contexts, clean
        self.backend = backend
        self.tail = model_tail(model, layout, clean.hidden[-1], in_tuples=clean.in_tuples)
        self.row_layers = 0
        self.frozen_attention = False  # no gradient passes through queries and keys
        self._layer_of = {
            id(m): i for i, layer in enumerate(layout.layers) for m in layer.modules()
        }
        self._rows: RowSet | Block | None = None
        self._visible: dict[int | None, Tensor] = {}
        self._check()
        register(ROWS, _attend, None)

    def _check(self) -> None:
        """Refuse what rows cannot reproduce, before anything is computed."""
        if self.layout.mixtures:
            raise SweepUnsupported("its MLPs are mixtures of experts")
        if not self.layout.causal:
            raise SweepUnsupported("in an encoder a change reaches all positions")
        if not self.layout.alone:
            raise SweepUnsupported("its layers also attend to an encoder's states")
        for i, (keys, kw) in enumerate(zip(self.clean.keys, self.clean.attention, strict=True)):
            if keys is None:
                raise SweepUnsupported(f"layer {i} does not use transformers' attention interface")
            if keys.shape[2] != self.contexts.ids.shape[1]:
                raise SweepUnsupported(f"layer {i} attends to positions in front of the prompt")
            odd = sorted(k for k, v in kw.items() if k not in _ATTENTION_ARGUMENTS and _matters(v))
            if odd:
                raise SweepUnsupported(f"layer {i} passes {odd[0]!r} to its attention")
            if kw.get("is_causal") is False:
                raise SweepUnsupported(f"layer {i} does not call its attention causal")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside this context the model's attention is prefix-plus-self."""
        with attention_implementation(self.model, ROWS):
            before = getattr(_local, "engine", None)
            _local.engine = self
            try:
                yield
            finally:
                _local.engine = before

    def clean_rows(self, context: Tensor, layer: int) -> Tensor:
        """The clean inputs ``[n, 1, d]`` of ``layer`` at the given contexts ``[n]``."""
        return at(self.clean.hidden[layer], context).unsqueeze(1)

    def run_layer(self, layer: int, hidden: Tensor, rows: RowSet | Block) -> Tensor:
        """Push ``hidden`` ``[B, R, d]`` through one decoder layer."""
        self._rows = rows
        bound = self.clean.calls[layer]
        arguments = {k: self._argument(layer, k, v, rows) for k, v in bound.arguments.items()}
        first = next(iter(arguments))
        arguments[first] = hidden
        call = inspect.BoundArguments(bound.signature, arguments)
        if isinstance(rows, RowSet):
            self.row_layers += hidden.shape[0] * hidden.shape[1]
        out = self.layout.layers[layer](*call.args, **call.kwargs)
        if not isinstance(out, torch.Tensor):
            raise SweepUnsupported(f"layer {layer} returns {type(out).__name__}, not a tensor")
        return out

    def _argument(self, layer: int, name: str, value: Any, rows: RowSet | Block) -> Any:
        if name == "kwargs":
            return {k: self._argument(layer, k, v, rows) for k, v in value.items()}
        if name in _CACHE_ARGUMENTS or name.endswith("attention_mask"):
            return None
        if name in POSITION_ARGUMENTS:
            return self._at_positions(value, rows)
        if name != next(iter(self.clean.calls[layer].arguments)) and _holds_tensor(value):
            raise SweepUnsupported(f"layer {layer} takes a tensor {name!r}")
        return value

    def _at_positions(self, value: Any, rows: RowSet | Block) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._at_positions(v, rows) for v in value)
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            return None if isinstance(value, torch.Tensor) else value
        if isinstance(rows, Block):
            sequence, position = rows.sequence, rows.position
        else:
            sequence = self.contexts.sequence[rows.context]
            position = self.contexts.position[rows.context]
        if value.shape[0] == 1:
            sequence = torch.zeros_like(sequence)
        return at(value, sequence, position)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kw: Any
    ) -> Tensor:
        """Attention ``[B, R, H, D]`` of the current rows; called by the model's own layers."""
        assert self._rows is not None
        rows, layer = self._rows.to(query.device), self._layer_of[id(module)]
        if self.frozen_attention:
            query, key = query.detach(), key.detach()
        scaling, window = kw.get("scaling"), kw.get("sliding_window")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        softcap = kw.get("softcap")
        keys, values = self.clean.keys[layer], self.clean.values[layer]
        assert keys is not None
        assert values is not None
        if isinstance(rows, Block):
            entry = rows.sequence[:, 0]
            mask = rows.mask(keys.shape[2], window)
            block = (query, key, value, keys[entry], values[entry], mask)
            return block_attention(*block, scaling, softcap).transpose(1, 2)
        options = {"scaling": scaling, "softcap": softcap, "backend": self.backend}
        visible = self._visibility(window).to(query.device)
        of_context = self.contexts.sequence.to(query.device)
        if rows.aligned:
            context = rows.context[:, 0]
            sequence = of_context[context]
            prefix = (keys[sequence], values[sequence], visible[context])
            out = prefix_attention(query, key, value, *prefix, **options)
            return out.transpose(1, 2)
        present, own = torch.unique(rows.context[0], return_inverse=True)
        slots, back = _slots(own, len(present))
        sequence = of_context[present]
        prefix = (keys[sequence], values[sequence], visible[present])
        parts = [_pad(x, slots) for x in (query, key, value)]
        out = prefix_attention(parts[0], parts[1], parts[2], *prefix, **options)
        flat = out.transpose(1, 2).reshape(-1, *out.shape[1::2])  # [C*R, H, D]
        return flat[back].unsqueeze(0)

    def _visibility(self, window: int | None) -> Tensor:
        """bool ``[C, T]``: prefix positions that the row at each context's position sees."""
        if window not in self._visible:
            at = torch.arange(self.contexts.ids.shape[1], device=self.contexts.ids.device)
            position = self.contexts.position.unsqueeze(1)
            seen = at < position
            if window is not None:
                seen &= at > position - window
            self._visible[window] = seen
        return self._visible[window]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any = None, **kw: Any
) -> tuple[Tensor, None]:
    engine: RowEngine = of_this_thread(_local, "engine")
    return engine.attend(module, query, key, value, **kw), None


def _slots(context: Tensor, n_contexts: int) -> tuple[Tensor, Tensor]:
    """Rows ``[N]`` grouped by context: indices ``[C, R_max]`` (padded with 0), and the way back."""
    order = torch.argsort(context, stable=True)
    counts = torch.bincount(context, minlength=n_contexts)
    start = torch.cumsum(counts, 0) - counts
    place = torch.arange(context.shape[0], device=context.device) - start[context[order]]
    longest = int(counts.max())
    slots = context.new_zeros(n_contexts, longest)
    slots[context[order], place] = order
    back = torch.empty_like(context)
    back[order] = context[order] * longest + place
    return slots, back


def _pad(x: Tensor, slots: Tensor) -> Tensor:
    """``[1, H, N, D]`` rows to ``[C, H, R_max, D]``."""
    rows = x[0].transpose(0, 1)  # [N, H, D]
    picked = rows.index_select(0, slots.reshape(-1)).view(*slots.shape, *rows.shape[1:])
    return picked.transpose(1, 2)


def _matters(value: Any) -> bool:
    return value is not None and value is not False


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_tensor(v) for v in value)
    if isinstance(value, dict):
        return any(_holds_tensor(v) for v in value.values())
    return isinstance(value, torch.Tensor)
