"""Edits by full forward passes: any positions, any model; the plain form of rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkn_engine.degeneracy.edits import Edit, LayerEdit, by_layer, change
from dkn_engine.forward.contexts import Contexts, by_position
from dkn_engine.forward.log_probability import log_probabilities
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.forward.upper_layers import UpperLayers
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout


@torch.no_grad()
def forward_log_probabilities(
    layout: Layout,
    contexts: Contexts,
    edits: Sequence[Edit],
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    positions: str,
    max_tokens: int,
    upper: UpperLayers | None = None,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What edits make of the gold tokens of N contexts.

    Args:
        pairs: int64 ``[N]`` each: which of ``edits``, and which context of the chunk.
        positions: where edits act: ``answer``, the position that predicts the context's own
            token, so one forward for each context (else for each sequence) under an edit;
            ``answer_all``, those of all answer tokens of the sequence; ``all``, every position.
        max_tokens: most positions in one forward.
        upper: begins passes at the first layer that an edit changes; None: all at the first.
        tokens: int64 ``[C, K]``, of each context of the chunk those whose logits are wanted too.

    Returns:
        The log-probability ``[N]``; bool ``[N]``, whether no token is more probable; and, with
        ``tokens``, logits ``[N, K]``, else None.
    """
    device, (edit, context) = contexts.ids.device, pairs
    lowest = _lowest_layers(edits, layout, upper)
    runs, entry = _runs(contexts, edit, context, positions, lowest)
    # Pairs by the run that they are read off; a run is an edit and a sequence.
    order = np.argsort(entry, kind="stable")
    ends = np.searchsorted(entry[order], np.arange(len(runs) + 1))
    found: list[tuple[Tensor, ...]] = []

    def evaluate(begin: int, start: int, stop: int) -> None:
        at = order[ends[start] : ends[stop]]
        chosen = torch.from_numpy(context[at]).to(device)
        leader = torch.from_numpy(context[runs[start:stop]]).to(device)
        sequence = contexts.sequence[leader]
        length = _length(layout, contexts, chosen, sequence)
        mask = where_edits_act(contexts, leader, positions)[:, :length]
        changes = [edits[p] for p in edit[runs[start:stop]]]
        of_run = torch.from_numpy(entry[at] - start).to(device)
        with upper.passes(begin, sequence, length) if upper else contextlib.nullcontext():
            whole = (layout, contexts, changes, leader, mask, of_run, chosen)
            found.append(_forward(*whole, tokens))

    size = max(1, max_tokens // contexts.n_read)
    begins, starts = np.unique(lowest[edit[runs]], return_index=True)
    for begin, start, stop in zip(begins.tolist(), starts, [*starts[1:], len(runs)], strict=True):

        def work(a: int, b: int, begin: int = begin, start: int = int(start)) -> None:
            evaluate(begin, start + a, start + b)

        in_batches(int(stop - start), size, work)
    back = torch.from_numpy(np.argsort(order)).to(device)
    log_p, first, *logits = (torch.cat(column)[back] for column in zip(*found, strict=True))
    return log_p, first, logits[0] if logits else None


def _length(layout: Layout, contexts: Contexts, chosen: Tensor, sequence: Tensor) -> int:
    """How many positions of sequences are read, of which the chosen contexts are looked at."""
    if not layout.causal:
        return contexts.ids.shape[1]
    # Nothing behind the last token that is looked at can change it; but some models read a
    # shorter sequence otherwise (see ``forward.lengths``).
    ends = contexts.ends()[sequence]
    return 1 + max(int(contexts.position[chosen].max()), int(ends.min()))


def _lowest_layers(
    edits: Sequence[Edit], layout: Layout, upper: UpperLayers | None
) -> NDArray[np.int64]:
    """int64 ``[P]``, the layer at which each edit's passes can begin."""
    if upper is None:
        return np.zeros(len(edits), dtype=np.int64)
    top = layout.n_layers - 1
    return np.array([int(one.neurons[:, 0].min(initial=top)) for one in edits], dtype=np.int64)


def _runs(
    contexts: Contexts,
    edit: NDArray[np.int64],
    context: NDArray[np.int64],
    positions: str,
    lowest: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A pair for each forward that is needed, sequence by sequence, and of each pair its forward.

    With ``answer`` every token has a forward of its own. Those that begin at one layer, ``lowest``
    of their edits, are neighbours.
    """
    own = context if positions == "answer" else contexts.sequence.cpu().numpy()[context]
    # Sequence by sequence, so that few of a batch are longer than others.
    by_layer_first = lowest[edit] * (int(own.max(initial=0)) + 1) + own
    code = by_layer_first * len(lowest) + edit
    _, runs, entry = np.unique(code, return_index=True, return_inverse=True)
    return runs, entry


def where_edits_act(contexts: Contexts, context: Tensor, positions: str) -> Tensor:
    """bool ``[n, T]``: where the edit of each entry acts."""
    at = torch.arange(contexts.ids.shape[1], device=context.device)
    if positions == "all":
        return torch.ones(len(context), len(at), dtype=torch.bool, device=context.device)
    own = contexts.position[context].unsqueeze(1)
    if positions == "answer":
        return at == own
    first = own - contexts.token[context].unsqueeze(1)
    counts = torch.bincount(contexts.answer)[contexts.answer[context]].unsqueeze(1)
    return (at >= first) & (at < first + counts)


def _forward(
    layout: Layout,
    contexts: Contexts,
    edits: Sequence[Edit],
    leader: Tensor,
    mask: Tensor,
    entry: Tensor,
    context: Tensor,
    tokens: Tensor | None,
) -> tuple[Tensor, ...]:
    """Of each ``context``, a token that batch entry ``entry`` predicts, ``[k]`` each.

    The batch has an edit, a context of its sequence (``leader``) and a row of ``mask`` an entry.
    With ``tokens`` also their logits ``[k, K]``.
    """
    with edited(layout, edits, mask):
        inputs = contexts.inputs(contexts.sequence[leader], mask.shape[1])
        logits = position_logits(layout.model, inputs, entry, contexts.position[context])
    log_p, n_above = log_probabilities(logits, contexts.target[context])
    found = log_p, (n_above == 0) & ~log_p.isnan()
    if tokens is None:
        return found
    return *found, logits.gather(1, tokens[context].to(logits.device)).to(log_p.dtype)


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
