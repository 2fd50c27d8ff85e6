"""Baseline activations x': masked (AMIG), zero, or given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dkn_engine.attribution.contexts import Contexts
from dkn_engine.guest import hooks
from dkn_engine.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


@torch.no_grad()
def masked_baselines(
    model: nn.Module, layout: Layout, contexts: Contexts, site: str, mask_id: int, max_tokens: int
) -> Tensor:
    """Mean activation ``[C, L, F]`` at each context with every prompt token masked in turn.

    Forced answer tokens are never masked. One forward pass over the masked copies gives all
    layers; copies are batched so that at most ``max_tokens`` positions are in a forward.
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
    counts = torch.tensor(contexts.n_prompt, dtype=wide, device=total.device)[contexts.sequence]
    return total / counts.view(-1, 1, 1)


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

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(*ids.shape, -1)[copy, position]
            total[:, layer].index_add_(0, context, x.to(total.dtype))

        return hook

    mlps = layout.mlps
    modules = [m.down if site == "post" else m.act for m in mlps]
    handles = [m.register_forward_pre_hook(keep(i)) for i, m in enumerate(modules) if m is not None]
    with hooks(handles):
        layout.base(input_ids=ids, use_cache=False)
