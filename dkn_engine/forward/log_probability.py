"""Log-probabilities of given tokens under logits."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of each target ``[C]`` under logits ``[C, V]``, in at least float32.

    Returns:
        Log-probabilities ``[C]``, and how many tokens ``[C]`` are more probable (0 under NaN).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    gold = wide.gather(-1, target.unsqueeze(-1))
    return gold.squeeze(-1) - torch.logsumexp(wide, dim=-1), (wide > gold).sum(-1)
