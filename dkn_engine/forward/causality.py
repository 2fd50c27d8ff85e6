"""Whether a model is what every stage takes it for: one row of logits a token; a decoder causal."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.encoding import context_length, n_tokens
from dkn_engine.models.guest import guest, hooks

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from dkn_engine.models.layout import Layout

_MOST_TOKENS = 8
_seen: weakref.WeakSet[Layout] = weakref.WeakSet()


def require_causal(layout: Layout) -> None:
    """Refuse a decoder that looks ahead, by two sequences that differ in the last token.

    A layout, which lives as long as a call or a run, is tried once.

    What a model calls itself is not asked: decoders are made to attend in both directions by
    several settings, and some of them only in some layers. Answers would leak into the positions
    that are to predict them.

    Raises:
        UnsupportedModelError: a later token changes what an earlier position gives, or the model
            puts positions of its own in front (prompt tuning).
    """
    if layout in _seen:
        return
    model = layout.model
    name = type(model).__name__
    # Spread over the vocabulary, whose first ids are often special.
    vocabulary, n = n_tokens(model), min(_MOST_TOKENS, context_length(model) or _MOST_TOKENS)
    spread = [[(i + 1) * vocabulary // (n + 1) for i in range(n)]]
    ids = torch.tensor(spread, device=layout.device)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % vocabulary
    both = torch.cat([ids, other])
    if layout.encoder is not None:
        _require_order(layout, both)
    streams: list[list[int]] = []
    with guest(model, grad=False), hooks([_watch_stream(layout, streams)]):
        logits = _logits(layout, both)
    if streams and len(streams[0]) > 3 and streams[0][:2] != list(both.shape):
        raise UnsupportedModelError(
            f"{name}: expected layers that read the residual stream by [sequences, tokens, "
            f"…]; found {streams[0]}"
        )
    if logits.shape[1] != ids.shape[1]:
        adapter = " (prompt tuning by peft?)" if hasattr(model, "peft_config") else ""
        raise UnsupportedModelError(
            f"{name}: expected one row of logits a token; found {logits.shape[1]} for "
            f"{ids.shape[1]} tokens, since it puts learnt positions in front of every text"
            f"{adapter}: use the base model, or an adapter that can be merged, such as LoRA"
        )
    if not layout.causal:
        _seen.add(layout)
        return
    allowed = max(1e-5, float(torch.finfo(logits.dtype).eps) / 4)
    if _apart(logits[1], logits[0]) > allowed and (apart := _leak(layout, ids, other)) > allowed:
        raise UnsupportedModelError(
            f"{name}: expected a causal decoder, whose positions do not see the tokens behind "
            "them; found that another last token changes the logits before it by "
            f"{apart:.1%}: load it with causal attention in every layer (config.is_causal=True, "
            "use_bidirectional_attention=False)"
        )
    if layout.mixtures:
        _require_own_experts(layout, ids)
    _seen.add(layout)


def _watch_stream(layout: Layout, shapes: list[list[int]]) -> RemovableHandle:
    """Keep the shape of what the first layer reads; Gemma 3n has several streams, in front."""

    def enter(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(iter((*args, *kwargs.values())), None)
        if isinstance(first, Tensor):
            shapes.append(list(first.shape))

    return layout.layers[0].register_forward_pre_hook(enter, with_kwargs=True)


def _require_order(layout: Layout, ids: Tensor) -> None:
    """Refuse MLPs that are given positions in front of sequences, as FSMT's.

    Seen here, where there are two sequences of more tokens; a chunk may have as many of both.
    """
    seen: list[Tensor] = []
    watching = hooks([layout.mlps[0].watch("post", seen.append)])
    with guest(layout.model, grad=False), watching:
        _logits(layout, ids)
    for x in seen:
        if x.shape[:2] == (ids.shape[1], ids.shape[0]):
            raise UnsupportedModelError(
                f"{type(layout.model).__name__}: expected MLPs that take sequences in front of "
                "their positions; found positions in front of sequences"
            )


def _require_own_experts(layout: Layout, ids: Tensor) -> None:
    """Refuse mixtures of experts around which something else is done than the engine knows.

    Where the model gives NaN, each fact will say so.
    """
    model, logits = layout.model, []
    for shown in (True, False):
        with guest(model, grad=False, shown=shown):
            logits.append(_logits(layout, ids)[0].double())
    finite = logits[1].isfinite().all(-1)
    found, own = logits[0][finite], logits[1][finite]
    apart, length = float((found - own).norm()), float(own.norm())
    allowed = max(1e-4, 4 * float(torch.finfo(next(model.parameters()).dtype).eps))
    if not apart <= allowed * length:
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected experts whose weighted outputs are added up, beside "
            f"those of a shared one; found logits {apart / max(length, 1e-30):.1e} of their length "
            "away from that"
        )


def _leak(layout: Layout, ids: Tensor, other: Tensor) -> float:
    """By how much another last token changes logits before it; 0 where it may be rounding.

    Two places of a batch may round differently, so that each is a pass for itself here; how far
    two passes over the same tokens are apart is the measure.
    """
    with guest(layout.model, grad=False):
        first, changed, again = (_logits(layout, x)[0] for x in (ids, other, ids))
    apart, noise = _apart(changed, first), _apart(again, first)
    return apart if apart > 10 * noise else 0.0


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a row of ``[T, V]``, the last row aside, relative to its length.

    0 where that is not finite: where the model gives NaN, each fact will say so.
    """
    found, expected = found[:-1].double(), expected[:-1].double()
    apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    return float(apart.nan_to_num(0.0, 0.0, 0.0).max())


def _logits(layout: Layout, ids: Tensor) -> Tensor:
    logits: Tensor = layout.model(**layout.inputs(ids), use_cache=False).logits
    return logits
