"""Edits by full forward passes: any positions, any decoder; the plain form of ``rows``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dkn_engine.attribution.contexts import Contexts
from dkn_engine.attribution.prefill import position_logits
from dkn_engine.degeneracy.edits import Edit, LayerEdit, by_layer
from dkn_engine.guest import hooks
from dkn_engine.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


@torch.no_grad()
def forward_log_probabilities(
    model: nn.Module,
    layout: Layout,
    contexts: Contexts,
    edits: Sequence[Edit],
    chosen: Tensor,
    positions: str,
    max_tokens: int,
) -> tuple[Tensor, Tensor]:
    """What each of P edits makes of each context's gold token.

    Args:
        model, layout: the decoder.
        contexts: of a chunk.
        edits: what changes.
        chosen: int64 ``[n]``, contexts to look at.
        positions: where edits act: ``answer``, the position that predicts the context's own
            token, so one forward a context; ``answer_all``, those of all answer tokens of the
            sequence; ``all``, every position.
        max_tokens: most positions in one forward.

    Returns:
        Its log-probability ``[P, n]``, and bool ``[P, n]``: whether no token is more probable.
    """
    entries = [(p, c) for p in range(len(edits)) for c in range(len(chosen))]
    step = max(1, max_tokens // contexts.ids.shape[1])
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(entries), step):
        batch = entries[start : start + step]
        context = chosen[torch.tensor([c for _, c in batch], device=chosen.device)]
        mask = _mask(contexts, context, positions)
        found.append(_forward(model, layout, contexts, [edits[p] for p, _ in batch], context, mask))
    shape = len(edits), len(chosen)
    if not found:
        nothing = torch.empty(shape, device=chosen.device)
        return nothing, nothing.bool()
    log_p, first = (torch.cat(column).view(shape) for column in zip(*found, strict=True))
    return log_p, first


def _mask(contexts: Contexts, context: Tensor, positions: str) -> Tensor:
    """bool ``[n, T]``: where the edit of each entry acts."""
    at = torch.arange(contexts.ids.shape[1], device=context.device)
    if positions == "all":
        return torch.ones(len(context), len(at), dtype=torch.bool, device=context.device)
    own = contexts.position[context].unsqueeze(1)
    if positions == "answer":
        return at == own
    first = own - contexts.token[context].unsqueeze(1)
    counts = torch.bincount(contexts.sequence)[contexts.sequence[context]].unsqueeze(1)
    return (at >= first) & (at < first + counts)


def _forward(
    model: nn.Module,
    layout: Layout,
    contexts: Contexts,
    edits: Sequence[Edit],
    context: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    handles = [
        layout.mlps[layer].down.register_forward_pre_hook(change_at(edit, mask))
        for layer, edit in by_layer(edits).items()
    ]
    entry = torch.arange(len(context), device=context.device)
    with hooks(handles):
        ids = contexts.ids[contexts.sequence[context]]
        logits = position_logits(model, ids, entry, contexts.position[context])
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    gold = wide.gather(-1, contexts.target[context].unsqueeze(-1)).squeeze(-1)
    return gold - torch.logsumexp(wide, dim=-1), gold >= wide.amax(-1)


def change_at(edit: LayerEdit, mask: Tensor) -> Any:
    """A hook that applies an edit to the activations of a batch where ``mask`` ``[B, T]`` says.

    Entry k of the edit belongs to batch entry ``row[k]``. Some MLPs see ``[B * T, F]``.
    """

    def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].reshape(*mask.shape, -1).clone()  # [B, T, F]
        row, index = (torch.from_numpy(a).to(x.device) for a in (edit.row, edit.index))
        factor, offset = (
            torch.from_numpy(a).to(x).unsqueeze(1) for a in (edit.factor, edit.offset)
        )
        old = x[row, :, index]  # [k, T]
        x[row, :, index] = torch.where(mask[row], old * factor + offset, old)
        return (x.view_as(args[0]), *args[1:])

    return hook
