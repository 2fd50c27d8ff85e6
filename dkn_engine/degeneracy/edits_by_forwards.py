"""Edits by full forward passes: any positions, any decoder; the plain form of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import Edit, LayerEdit, by_layer, change
from dkn_engine.forward.contexts import Contexts, by_position
from dkn_engine.forward.log_probability import log_probabilities
from dkn_engine.forward.prefill import position_logits
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout


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
        chosen: int64 ``[n]``, contexts to look at.
        positions: where edits act: ``answer``, the position that predicts the context's own
            token, so one forward a context (else one a sequence); ``answer_all``, those of all
            answer tokens of the sequence; ``all``, every position.
        max_tokens: most positions in one forward.

    Returns:
        Its log-probability ``[P, n]``, and bool ``[P, n]``: whether no token is more probable.
    """
    groups = _sharing(contexts, chosen, positions)
    # Sequence by sequence, so that few of a batch are longer than others.
    entries = [(p, columns) for columns in groups for p in range(len(edits))]
    step = max(1, max_tokens // contexts.ids.shape[1])
    shape = len(edits), len(chosen)
    log_p = torch.empty(shape, device=chosen.device)
    first = torch.empty(shape, dtype=torch.bool, device=chosen.device)
    ends = contexts.ends()

    def evaluate(start: int, stop: int) -> None:
        nonlocal log_p
        batch = entries[start:stop]
        asked = [(k, p, c) for k, (p, columns) in enumerate(batch) for c in columns]
        entry, edit, column = torch.tensor(asked, device=chosen.device).T
        leader = chosen[torch.tensor([columns[0] for _, columns in batch], device=chosen.device)]
        changes = [edits[p] for p, _ in batch]
        # Nothing behind the last token that is looked at can change it; but some models read a
        # shorter sequence otherwise (see ``forward.lengths``).
        shortest = int(ends[contexts.sequence[leader]].min())
        length = 1 + max(int(contexts.position[chosen[column]].max()), shortest)
        mask = _mask(contexts, leader, positions)[:, :length]
        gold, hit = _forward(model, layout, contexts, changes, leader, mask, entry, chosen[column])
        log_p = log_p.to(gold.dtype)
        log_p[edit, column], first[edit, column] = gold, hit

    in_batches(len(entries), step, evaluate)
    return log_p, first


def _sharing(contexts: Contexts, chosen: Tensor, positions: str) -> list[list[int]]:
    """Columns of ``chosen`` that one forward serves: with ``answer`` every token has its own."""
    sequence = contexts.sequence[chosen].tolist()
    found: dict[int, list[int]] = {}
    for column, s in enumerate(sequence):
        found.setdefault(column if positions == "answer" else s, []).append(column)
    return list(found.values())


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
    leader: Tensor,
    mask: Tensor,
    entry: Tensor,
    context: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of each ``context``, a token that batch entry ``entry`` predicts, ``[k]`` each.

    The batch has an edit, a context of its sequence (``leader``) and a row of ``mask`` an entry.
    """
    with edited(layout, edits, mask):
        ids = contexts.ids[contexts.sequence[leader], : mask.shape[1]]
        logits = position_logits(model, ids, entry, contexts.position[context])
    log_p, n_above = log_probabilities(logits, contexts.target[context])
    return log_p, (n_above == 0) & ~log_p.isnan()


def edited(
    layout: Layout, edits: Sequence[Edit], mask: Tensor
) -> contextlib.AbstractContextManager[None]:
    """Forward passes of a batch in the block have its edits, one an entry, where ``mask`` says."""
    return hooks(
        [
            layout.mlps[layer].down.register_forward_pre_hook(change_at(edit, mask))
            for layer, edit in by_layer(edits).items()
        ]
    )


def change_at(edit: LayerEdit, mask: Tensor) -> Any:
    """A hook that applies an edit to the activations of a batch where ``mask`` ``[B, T]`` says.

    Entry k of the edit belongs to batch entry ``row[k]``. Some MLPs see ``[B * T, F]``.
    """

    def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = by_position(args[0], mask.shape).clone()  # [B, T, F]
        change(x.transpose(0, 1), edit, mask.T)  # its rows are the batch's
        return (x.view_as(args[0]), *args[1:])

    return hook
