"""The plain torch form of ``prefix_attention``; autograd gives its backward."""

from __future__ import annotations

import torch


def prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    visible: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    c, h, r, d = query.shape
    h_kv, t = key.shape[1], prefix_key.shape[2]
    group = h // h_kv
    grouped = query.reshape(c, h_kv, group, r, d)
    own = (grouped * key.unsqueeze(2)).sum(-1).view(c, h_kv, 1, group * r)
    # Queries of one group are columns of one matrix: [C, H_kv, T, D] x [C, H_kv, D, G*R]. What a
    # row attends to lies along the second last axis, since a softmax over few columns is slow.
    prefix = prefix_key @ grouped.reshape(c, h_kv, group * r, d).transpose(-1, -2)
    logits = torch.cat([prefix, own], dim=2) * scaling  # [C, H_kv, T + 1, G*R]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    hidden = torch.cat([~visible, visible.new_zeros(c, 1)], dim=-1).view(c, 1, t + 1, 1)
    logits = logits.masked_fill(hidden, float("-inf"))
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = torch.softmax(logits, dim=2, dtype=wide).to(query.dtype)
    mixed = weights[:, :, :t].transpose(-1, -2) @ prefix_value  # [C, H_kv, G*R, Dv]
    shape = (c, h_kv, group, r, value.shape[-1])
    out = mixed.view(shape) + weights[:, :, t].reshape(*shape[:-1], 1) * value.unsqueeze(2)
    return out.reshape(c, h, r, value.shape[-1])
