"""One clean forward pass of a chunk: activations, layer inputs, keys and values, probabilities."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle

from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.log_probability import log_probabilities
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.forward.routing import Routing, last_routing
from dkn_engine.models.devices import at
from dkn_engine.models.guest import attention_implementation, hooks
from dkn_engine.models.layout import Layout
from dkn_engine.models.projections import require_once
from dkn_engine.models.torch_internals import class_forward

RECORD = "dkn_engine_record"
# Arguments of a layer that hold one entry a position.
POSITION_ARGUMENTS = {"position_embeddings", "position_ids", "cache_position"}
_local = threading.local()


@dataclass(frozen=True, eq=False)
class Prefill:
    """What a clean forward leaves behind for the rows that follow.

    Attributes:
        log_probability: ``[C]`` in at least float32, of each context's gold token, by the model.
        rank: int64 ``[C]``, 1 = the gold token is the most probable.
        post, pre, up: ``[C, L, F]``: the down projection's input, the non-linearity's input and
            the linear factor (``pre`` None without a module for the non-linearity, or one that
            does not run once in each layer).
        hidden: for each layer ``[C, d]``, its input at the contexts' positions, on the device that
            it comes from.
        keys, values: for each layer ``[B, H_kv, T, D]`` after rotary embedding, on the layer's
            device, where the attention goes through the interface.
        attention: for each layer the keyword arguments its attention passed.
        calls: for each layer the arguments it was called with.
        in_tuples: layers return their hidden states as the first of a tuple of so many; 0: alone.
        routing: of layers that are mixtures of experts, where each context's position went.
        states: of an encoder-decoder, what its encoder gave, ``[B, S, d]``; None unless that came
            once.
    """

    log_probability: torch.Tensor
    rank: torch.Tensor
    post: torch.Tensor
    pre: torch.Tensor | None
    up: torch.Tensor | None
    hidden: list[torch.Tensor]
    keys: list[torch.Tensor | None]
    values: list[torch.Tensor | None]
    attention: list[dict[str, Any]]
    calls: list[inspect.BoundArguments]
    in_tuples: int
    routing: Routing = field(default_factory=dict)
    states: torch.Tensor | None = None

    def take(self, index: torch.Tensor) -> Prefill:
        """The same for some of the contexts; keys, values and calls belong to the sequences."""
        return replace(
            self,
            log_probability=self.log_probability[index],
            rank=self.rank[index],
            post=self.post[index],
            pre=None if self.pre is None else self.pre[index],
            up=None if self.up is None else self.up[index],
            hidden=[at(h, index) for h in self.hidden],
            routing={l: (at(e, index), at(w, index)) for l, (e, w) in self.routing.items()},
        )


@dataclass(frozen=True)
class _Recorder:
    """Keeps what the attention of one forward pass is given, layer by layer."""

    layer_of: dict[int, int]
    original: str
    keys: list[Any]
    values: list[Any]
    attention: list[dict[str, Any]]


def _original_attention(module: nn.Module, name: str) -> Callable[..., Any]:
    """The attention the model would have used; ``eager`` is a function of its own file."""
    import sys

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    files = [sys.modules[kind.__module__] for kind in type(module).__mro__]
    eager: Any = next(
        filter(None, (getattr(f, "eager_attention_forward", None) for f in files)), None
    )
    found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    return found


def of_this_thread(local: threading.local, name: str) -> Any:
    """What this thread has set under ``name`` for the engine's attention.

    Raises:
        RuntimeError: nothing; the forward is not the engine's own.
    """
    found = getattr(local, name, None)
    if found is None:
        raise RuntimeError(
            "dkn_engine is using this model in another thread, which replaces its attention for "
            "the length of a call: let own forwards of the model wait for the call's end"
        )
    return found


def _record_attention(
    module: nn.Module, query: Any, key: Any, value: Any, *args: Any, **kw: Any
) -> Any:
    kept: _Recorder = of_this_thread(_local, "recorder")
    layer = kept.layer_of[id(module)]
    kept.keys[layer], kept.values[layer], kept.attention[layer] = key, value, kw
    return _original_attention(module, kept.original)(module, query, key, value, *args, **kw)


def _record_mask(*args: Any, **kw: Any) -> Any:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    name = of_this_thread(_local, "recorder").original
    if name not in ALL_MASK_ATTENTION_FUNCTIONS:
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS[name](*args, **kw)


def register(name: str, attention: Callable[..., Any], mask: Callable[..., Any] | None) -> None:
    """Make ``name`` an attention implementation of transformers (idempotent)."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, attention)
    if mask is not None and name not in ALL_MASK_ATTENTION_FUNCTIONS:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)


@torch.no_grad()
def prefill(model: nn.Module, layout: Layout, contexts: Contexts) -> Prefill:
    """Run the model once over the chunk, by its own attention, and keep what rows will need.

    Raises:
        UnsupportedModelError: a layer or a down projection does not run once.
    """
    n = layout.n_layers
    register(RECORD, _record_attention, _record_mask)
    layer_of = {id(m): i for i, layer in enumerate(layout.layers) for m in layer.modules()}
    hidden, calls, post, pre, up = (_Kept(n) for _ in range(5))
    returned: list[int] = []

    def enter(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(class_forward(module)).bind(*args, **kwargs)
        whole = next(iter(bound.arguments.values()))
        hidden.put(layer, at(whole, contexts.sequence, contexts.position))
        calls.put(layer, bound)

    handles = [
        layer.register_forward_pre_hook(partial(enter, i), prepend=True, with_kwargs=True)
        for i, layer in enumerate(layout.layers)
    ]
    top = layout.layers[-1]
    handles.append(top.register_forward_hook(lambda _m, _a, out: returned.append(_length(out))))
    handles += _watched(layout, contexts, post, pre, up)
    states = _Kept(1)
    if layout.encoder is not None:
        read = layout.encoder.register_forward_hook(lambda _m, _a, out: states.put(0, out[0]))
        handles.append(read)
    with _recording(layout) as original, hooks(handles):
        recorder = _Recorder(layer_of, original, [None] * n, [None] * n, [{}] * n)
        _local.recorder = recorder
        try:
            log_p, rank = token_log_probabilities(model, contexts)
        finally:
            _local.recorder = None
    for i, layer in enumerate(layout.layers):
        require_once(layout, i, layer, hidden.runs[i])
        require_once(layout, i, layout.mlps[i].down, post.runs[i])
    return Prefill(
        log_p,
        rank,
        post.stacked(),
        pre.stacked(),
        up.stacked(),
        hidden.values,
        recorder.keys,
        recorder.values,
        recorder.attention,
        calls.values,
        returned[-1],
        last_routing(layout, contexts),
        states.values[0] if states.runs[0] == 1 else None,
    )


def _length(returned: Any) -> int:
    """Of how many a tuple is; 0 for what is none."""
    return len(returned) if isinstance(returned, tuple) else 0


def _watched(
    layout: Layout, contexts: Contexts, post: _Kept, pre: _Kept, up: _Kept
) -> list[RemovableHandle]:
    """Hooks that keep the activations at the contexts, of each site that an MLP has."""

    def keep(kept: _Kept, layer: int, activation: torch.Tensor) -> None:
        kept.put(layer, contexts.rows(activation).to(contexts.ids.device))

    handles = []
    for i, mlp in enumerate(layout.mlps):
        handles.append(mlp.watch("post", partial(keep, post, i)))
        if mlp.act is not None:
            handles.append(mlp.watch("pre", partial(keep, pre, i)))
        if mlp.up is not None:
            handles.append(mlp.watch("up", partial(keep, up, i)))
    return handles


def _recording(layout: Layout) -> contextlib.AbstractContextManager[str]:
    """Rename the attention where the model takes it from the interface; elsewhere nothing is kept.

    Nor of a model with an encoder, which no row runs through.

    A model that does not may branch on the name itself and compute something else under ours
    (Falcon adds the mask of ``sdpa``, which is boolean, to its scores).
    """
    if layout.alone and getattr(layout.model, "_supports_attention_backend", False):
        return attention_implementation(layout.model, RECORD)
    return contextlib.nullcontext("")


def token_log_probabilities(
    model: nn.Module, contexts: Contexts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability ``[C]`` and rank ``[C]`` of each context's gold token, by a full forward."""
    logits = position_logits(model, contexts.inputs(), contexts.sequence, contexts.position)
    log_p, n_above = log_probabilities(logits, contexts.target)
    return log_p, n_above + 1


class _Kept:
    """What came last in each layer, and how often something came."""

    def __init__(self, n_layers: int) -> None:
        self.values: list[Any] = [None] * n_layers
        self.runs = [0] * n_layers

    def put(self, layer: int, value: Any) -> None:
        self.values[layer] = value
        self.runs[layer] += 1

    def stacked(self) -> Any:
        """``[C, L, F]``, shorter ones with zeros; None unless each layer had one."""
        if set(self.runs) != {1}:
            return None
        widths = [value.shape[-1] for value in self.values]
        if len(set(widths)) == 1:
            return torch.stack(self.values, dim=1)
        pairs = zip(self.values, widths, strict=True)
        return torch.stack([pad(v, (0, max(widths) - n)) for v, n in pairs], dim=1)
