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
    # Queries of one group are rows of one matrix: [C, H_kv, G*R, D] x [C, H_kv, D, T].
    prefix = grouped.reshape(c, h_kv, group * r, d) @ prefix_key.transpose(-1, -2)
    prefix = prefix.view(c, h_kv, group, r, t)
    own = (grouped * key.unsqueeze(2)).sum(-1, keepdim=True)  # [C, H_kv, G, R, 1]
    logits = torch.cat([prefix, own], dim=-1) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    hidden = torch.cat([~visible, visible.new_zeros(c, 1)], dim=-1).view(c, 1, 1, 1, t + 1)
    logits = logits.masked_fill(hidden, float("-inf"))
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = torch.softmax(logits, dim=-1, dtype=wide).to(query.dtype)
    mixed = weights[..., :t].reshape(c, h_kv, group * r, t) @ prefix_value  # [C, H_kv, G*R, Dv]
    out = mixed.view(c, h_kv, group, r, value.shape[-1]) + weights[..., t:] * value.unsqueeze(2)
    return out.reshape(c, h, r, value.shape[-1])
