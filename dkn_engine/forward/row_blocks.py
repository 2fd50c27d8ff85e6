"""Blocks of rows: changed positions of a sequence that see a clean prefix and one another.

Masking prompt token j leaves the positions before j as they are, so a masked copy is only its
positions from j on, which attend to the clean keys and values before j and causally to themselves.
Several copies of a sequence are rows of one block that do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """N rows for each of E entries; padding rows see only themselves.

    Attributes:
        sequence: int64 ``[E, 1]``, the sequence of the chunk that each entry belongs to.
        position: int64 ``[E, N]``, of each row in its sequence.
        start: int64 ``[E, N]``, the first changed position of the row's copy.
        copy: int64 ``[E, N]``, which copy a row belongs to; negative for padding, all different.
    """

    sequence: Tensor
    position: Tensor
    start: Tensor
    copy: Tensor

    def to(self, device: torch.device) -> Block:
        return Block(*(x.to(device) for x in (self.sequence, self.position, self.start, self.copy)))

    def mask(self, length: int, window: int | None) -> Tensor:
        """bool ``[E, N, length + N]``: the prefix positions and rows that each row attends to."""
        at = torch.arange(length, device=self.position.device)
        position = self.position.unsqueeze(-1)
        prefix = at < self.start.unsqueeze(-1)
        same = self.copy.unsqueeze(-1) == self.copy.unsqueeze(-2)
        own = same & (self.position.unsqueeze(-2) <= position)
        if window is not None:
            prefix = prefix & (at > position - window)
            own = own & (self.position.unsqueeze(-2) > position - window)
        return torch.cat([prefix, own], dim=-1)


def pad_block(copies: Sequence[Sequence[tuple[int, int, int]]], device: torch.device) -> Block:
    """A block from each entry's copies of one sequence.

    A copy is (sequence, first changed position, last position).
    """
    rows = [
        [(p, start, k) for k, (_, start, last) in enumerate(entry) for p in range(start, last + 1)]
        for entry in copies
    ]
    longest = max(len(r) for r in rows)
    padded = [r + [(0, 0, -1 - i) for i in range(longest - len(r))] for r in rows]
    table = torch.tensor(padded, dtype=torch.int64, device=device)
    sequence = torch.tensor([[entry[0][0]] for entry in copies], device=device)
    return Block(sequence, *(table[..., i].contiguous() for i in range(3)))


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    mask: Tensor,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Attention of the rows of a block to its prefix and to the rows themselves.

    Args:
        query: ``[E, H, N, D]``; key, value: ``[E, H_kv, N, D]``, the rows' own.
        prefix_key, prefix_value: ``[E, H_kv, T, D]``.
        mask: bool ``[E, N, T + N]``, see :meth:`Block.mask`.
        scaling, softcap: as the model gives them to its attention.

    Returns:
        ``[E, H, N, D]``.
    """
    entries, heads, n, d = query.shape
    keys = torch.cat([prefix_key, key], dim=2)
    values = torch.cat([prefix_value, value], dim=2)
    h_kv = keys.shape[1]
    grouped = query.reshape(entries, h_kv, -1, d)  # [E, H_kv, G * N, D]
    logits = (grouped @ keys.transpose(-1, -2)) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.view(entries, h_kv, heads // h_kv, n, -1)
    logits = logits.masked_fill(~mask[:, None, None], float("-inf"))
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = torch.softmax(logits, dim=-1, dtype=wide).to(query.dtype)
    out = weights.view(entries, h_kv, -1, weights.shape[-1]) @ values
    return out.view(entries, heads, n, -1)
