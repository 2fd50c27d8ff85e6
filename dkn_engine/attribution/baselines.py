"""Baseline activations x': masked (AMIG), zero, or given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from dkn_engine.attribution.blocks import pad_block
from dkn_engine.attribution.contexts import Contexts
from dkn_engine.attribution.rows import RowEngine
from dkn_engine.attribution.sites import watch
from dkn_engine.attribution.tail import layer_inputs
from dkn_engine.guest import hooks
from dkn_engine.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


# Rows of a block entry: enough to fill a product of matrices, few enough that the rows' attention
# to one another, most of it masked, costs little beside it.
_BLOCK_ROWS = 256


@torch.no_grad()
def masked_baselines(
    model: nn.Module, layout: Layout, contexts: Contexts, site: str, mask_id: int, max_tokens: int
) -> Tensor:
    """Mean activation ``[C, L, F]`` at each context with every prompt token masked in turn.

    Forced answer tokens are never masked. One forward pass over whole masked copies gives all
    layers; copies are batched so that at most ``max_tokens`` positions are in a forward. This is
    the plain form of :func:`shared_masked_baselines`, for models without rows.
    Source: AMIG baselines of Chen et al. 2024 (arXiv 2308.13198), as the design defines them.
    """
    n, length = contexts.ids.shape
    copies = [(b, j) for b in range(n) for j in range(contexts.n_prompt[b])]
    shape = (len(contexts), layout.n_layers, layout.width)
    wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    total = torch.zeros(shape, dtype=wide, device=contexts.ids.device)
    step = max(1, max_tokens // length)
    for start in range(0, len(copies), step):
        _add_masked(model, layout, contexts, site, mask_id, copies[start : start + step], total)
    return _mean(total, contexts)


def _mean(total: Tensor, contexts: Contexts) -> Tensor:
    """Sums over the masked copies of a prompt, divided by their number."""
    counts = torch.tensor(contexts.n_prompt, dtype=total.dtype, device=total.device)
    return total / counts[contexts.sequence].view(-1, 1, 1)


def _add_masked(
    model: nn.Module,
    layout: Layout,
    contexts: Contexts,
    site: str,
    mask_id: int,
    copies: list[tuple[int, int]],
    total: Tensor,
) -> None:
    """Add the activations of a batch of masked copies (sequence, masked position) to ``total``."""
    device = contexts.ids.device
    sequence = torch.tensor([b for b, _ in copies], device=device)
    masked = torch.tensor([j for _, j in copies], device=device)
    entry = torch.arange(len(copies), device=device)
    ids = contexts.ids[sequence]
    ids[entry, masked] = mask_id
    # Pairs (copy, context) with the context in that copy's sequence.
    pairs = torch.nonzero(sequence.unsqueeze(1) == contexts.sequence.unsqueeze(0))
    copy, context = pairs[:, 0], pairs[:, 1]
    position = contexts.position[context]

    def keep(layer: int) -> Callable[[Tensor], None]:
        def add(activation: Tensor) -> None:
            x = activation.reshape(*ids.shape, -1)[copy, position]
            total[:, layer].index_add_(0, context, x.to(total.dtype))

        return add

    with hooks([watch(mlp, site, keep(i)) for i, mlp in enumerate(layout.mlps)]):
        layout.base(input_ids=ids, use_cache=False)


@torch.no_grad()
def shared_masked_baselines(engine: RowEngine, site: str, mask_id: int, max_tokens: int) -> Tensor:
    """:func:`masked_baselines` with the prefix in front of each masked token computed once.

    A copy is only its positions from the masked token to the last answer position: half the work
    for a prompt of any length. See ``blocks.py``.

    Args:
        engine: rows of the chunk.
        site, mask_id: as there.
        max_tokens: most rows in one pass.
    """
    contexts, layout = engine.contexts, engine.layout
    shape = (len(contexts), layout.n_layers, layout.width)
    wide = torch.promote_types(engine.clean.post.dtype, torch.float32)
    total = torch.zeros(shape, dtype=wide, device=contexts.ids.device)
    entries = _entries(contexts)
    while entries:
        n = max(1, max_tokens // max(map(_rows_of, entries)))
        _add_block(engine, site, mask_id, entries[:n], total)
        entries = entries[n:]
    return _mean(total, contexts)


Copies = list[tuple[int, int, int]]


def _entries(contexts: Contexts) -> list[Copies]:
    """Copies (sequence, masked position, last position), a few of one sequence to an entry."""
    last = torch.zeros(len(contexts.n_prompt), dtype=torch.int64, device=contexts.ids.device)
    last.scatter_reduce_(0, contexts.sequence, contexts.position, "amax")
    entries: list[Copies] = []
    for b, (n_prompt, end) in enumerate(zip(contexts.n_prompt, last.tolist(), strict=True)):
        entry: Copies = []
        for j in range(n_prompt):
            if entry and _rows_of(entry) + end - j + 1 > _BLOCK_ROWS:
                entries.append(entry)
                entry = []
            entry.append((b, j, end))
        entries.append(entry)
    # Entries of a pass are padded to the longest, so those of one length go together.
    return sorted(entries, key=_rows_of, reverse=True)


def _rows_of(entry: Copies) -> int:
    return sum(end - j + 1 for _, j, end in entry)


def _add_block(
    engine: RowEngine, site: str, mask_id: int, entries: list[Copies], total: Tensor
) -> None:
    """Add the activations of the entries' masked copies to ``total``."""
    contexts, device = engine.contexts, total.device
    block = pad_block(entries, device)
    # The first layer's inputs may hold positions: embed whole masked copies, pick the rows.
    copies = [copy for entry in entries for copy in entry]
    whole = contexts.ids[torch.tensor([b for b, _, _ in copies], device=device)]
    whole[torch.arange(len(copies)), torch.tensor([j for _, j, _ in copies])] = mask_id
    first = torch.tensor([0, *(len(e) for e in entries[:-1])], device=device).cumsum(0)
    at_copy = first.unsqueeze(1) + block.copy.clamp(min=0)
    hidden = layer_inputs(engine.layout, whole)[at_copy, block.position]
    wanted = (
        (block.copy.unsqueeze(-1) >= 0)
        & (block.sequence.unsqueeze(-1) == contexts.sequence)
        & (block.position.unsqueeze(-1) == contexts.position)
    )
    entry, row, context = wanted.nonzero(as_tuple=True)

    def keep(layer: int) -> Callable[[Tensor], None]:
        def add(activation: Tensor) -> None:
            total[:, layer].index_add_(0, context, activation[entry, row].to(total.dtype))

        return add

    with engine.active():
        for layer, mlp in enumerate(engine.layout.mlps):
            with hooks([watch(mlp, site, keep(layer))]):
                hidden = engine.run_layer(layer, hidden, block)
