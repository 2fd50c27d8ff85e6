"""The plain torch form of ``answer_probability``: the model's own tail and autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch


def answer_probability(
    tail: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    objective: str,
    gradient: bool,
    block: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    values = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
    grads = torch.empty_like(hidden) if gradient else None
    for start in range(0, hidden.shape[0], block):
        rows = slice(start, start + block)
        with torch.set_grad_enabled(gradient):
            h = hidden[rows].detach().requires_grad_(gradient)
            value = token_objective(tail(h), targets[rows], objective)
            values[rows] = value.detach()
            if grads is not None:
                (grads[rows],) = torch.autograd.grad(value.sum(), h)
    return values, grads


def token_objective(logits: torch.Tensor, targets: torch.Tensor, objective: str) -> torch.Tensor:
    """``[n]``: the gold token's probability, its logarithm, or its logit, in at least float32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    gold = wide.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if objective == "logit":
        return gold
    log_p = gold - torch.logsumexp(wide, dim=-1)
    return log_p if objective == "log_probability" else log_p.exp()
