"""The model's tail, everything after its last block: as it is, and taken apart for a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.forward.position_logits import position_logits
from dkn_engine.forward.stand_ins import beside_nothing
from dkn_engine.models.devices import is_offloaded
from dkn_engine.models.kinds import text_config
from dkn_engine.models.layout import Layout
from dkn_engine.models.readable import plain_weight
from dkn_engine.models.torch_internals import children, replaced
from dkn_engine.ops.answer_probability import Head, Tail


def model_tail(model: nn.Module, layout: Layout, sample: Tensor, *, in_tuples: int = 0) -> Tail:
    """The tail, as logits ``[n, V]`` of the last layer's outputs ``[n, d]``.

    Args:
        model, layout: the decoder.
        sample: ``[n, d]`` hidden states of this model, on which a tail taken apart has to give the
            model's own logits.
        in_tuples: see :class:`dkn_engine.forward.prefill.Prefill`.
    """
    forward = partial(_forward, model, layout, in_tuples)
    return Tail(forward, partial(_take_apart, model, forward, sample))


@torch.no_grad()
def _take_apart(
    model: nn.Module, forward: Callable[[Tensor], Tensor], sample: Tensor
) -> Head | str:
    """Norm, projection, scale and cap of the tail, or why they are not all there is to it.

    What transformers' configurations call the scale and the cap is tried; whether that was right,
    and whether the model does nothing else to its logits, is seen from the logits.
    """
    found = _projection(model)
    if isinstance(found, str):
        return found
    owner, name, projection = found
    if is_offloaded(projection) or projection.weight.device != sample.device:
        return "its projection is offloaded or not on the device of the last layer"

    def norm(hidden: Tensor) -> Tensor:
        capture = _Capture(projection.weight)
        with replaced(owner, name, capture):
            forward(hidden)
        normed: Any = capture.seen
        return normed.reshape(hidden.shape)  # type: ignore[no-any-return]  # capture is untyped

    head = Head(norm, projection.weight, projection.bias, *_scale_and_cap(model))
    rows = sample[sample.isfinite().all(-1)][:4]
    if not rows.shape[0]:
        return "no context has finite hidden states to compare its logits on"
    try:
        own, rebuilt = forward(rows).double(), head.logits(rows).double()
        apart = float((own - rebuilt).norm() / own.norm())
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        return f"its forward fails without the projection ({type(error).__name__}: {error})"
    # Both round once or twice in the model's dtype, independently for each logit.
    allowed = max(1e-5, float(torch.finfo(sample.dtype).eps))
    if not apart <= allowed:
        return (
            "norm, projection, scale and cap do not give the model's own logits: "
            f"off by {apart:.1e} of their length (allowed {allowed:.1e})"
        )
    return head


def _projection(model: nn.Module) -> tuple[nn.Module, str, nn.Linear] | str:
    """The projection to the vocabulary and where it hangs in the model, or why it has none."""
    projection: Any = model.get_output_embeddings()  # type: ignore[operator]  # of transformers
    # By class: an adapter that wraps a Linear, or a quantised one, computes something else.
    if type(projection) is not nn.Linear or not plain_weight(projection.weight):
        return f"expected a projection of class Linear; found {type(projection).__name__}"
    places = [
        (module, name)
        for module in model.modules()
        for name, child in children(module).items()
        if child is projection
    ]
    if len(places) != 1:
        return f"expected one place in the model for its projection; found {len(places)}"
    return (*places[0], projection)


def _scale_and_cap(model: nn.Module) -> tuple[float, float | None]:
    """Factor on the logits (Cohere's ``logit_scale``, Granite's divisor) and Gemma's cap."""
    text = text_config(model)
    scale = getattr(text, "logit_scale", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    cap = getattr(text, "final_logit_softcapping", None)
    return float(scale) / float(divisor), None if cap is None else float(cap)


def _forward(model: nn.Module, layout: Layout, in_tuples: int, hidden: Tensor) -> Tensor:
    """What the model makes of its last layer's outputs ``[n, d]``: logits ``[n, V]``."""
    # As many as there are layers: ALBERT counts them.
    every = nn.ModuleList([_Inject(hidden.unsqueeze(1), in_tuples)] * layout.n_layers)
    with replaced(layout.base, layout.stack, every):
        ids = torch.zeros(hidden.shape[0], 1, dtype=torch.int64, device=hidden.device)
        logits: Tensor = model(**layout.inputs(ids), use_cache=False).logits
    return logits[:, 0]


@torch.no_grad()
def layer_inputs(layout: Layout, ids: Tensor, *, whole: bool = False) -> Tensor:
    """What feeds the first layer for tokens ``[B, T]``: ``[B, T, d]``.

    By the decoder alone, or by the ``whole`` model, which may be around it and add to that.
    """
    capture = _Inject(None)
    with replaced(layout.base, layout.stack, nn.ModuleList([capture])):
        if whole:
            position_logits(layout.model, {"input_ids": ids}, ids[:1, 0] * 0, ids[:1, 0] * 0)
        else:
            layout.base(input_ids=ids, use_cache=False)
    assert capture.seen is not None
    return capture.seen


class _Inject(nn.Module):
    """A decoder layer that keeps its input and returns given hidden states, or that input."""

    def __init__(self, hidden: Tensor | None, in_tuples: int = 0) -> None:
        super().__init__()
        self.hidden, self.in_tuples = hidden, in_tuples
        self.seen: Tensor | None = None
        self.attention_type = "full_attention"

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        self.seen = hidden_states
        out = hidden_states if self.hidden is None else self.hidden
        return beside_nothing(out, self.in_tuples)


class _Capture(nn.Module):
    """Stands in for the projection: keeps its input, and returns one logit for all."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight  # some forwards look at its dtype
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x[..., :1]
