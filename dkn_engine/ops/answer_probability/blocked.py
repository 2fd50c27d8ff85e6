"""``answer_probability`` in closed form on the CPU: blocks of the vocabulary, no autograd in them.

The formulas are those of ``triton.py``. A block's logits are made, exponentiated and multiplied
back while they are in the processor's cache; the running maximum is that of Milakov and Gimelshein
(arXiv 1805.02867, algorithm 3).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dkn_engine.ops.answer_probability.tail import Head, affine, behind_norm, cap, target_logit

# Tokens of a block: measured best, or within 1 % of it, for 8 to 720 rows of the demo model.
BLOCK = 1536


def answer_probability(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    objective: str,
    gradient: bool,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor | None]:
    if not hidden.shape[0]:
        return hidden.new_empty(0), torch.empty_like(hidden) if gradient else None
    closed_form = partial(_log_probability, block=block)
    return behind_norm(closed_form, head, hidden, targets, objective, gradient)


@torch.no_grad()
def _log_probability(
    head: Head, x: Tensor, targets: Tensor, gradient: bool, block: int
) -> tuple[Tensor, Tensor | None]:
    """Log-probability ``[N]`` of the targets, and its gradient ``[N, d]`` in ``x``."""
    n, vocabulary = x.shape[0], head.weight.shape[0]
    row = torch.arange(n, device=x.device)
    own, s_own, g_own = target_logit(head, x, targets)
    top = s_own.to(x.dtype)
    total = torch.zeros_like(s_own)  # of exp(s - top) over all tokens but the target
    sums = torch.zeros_like(x)
    for first in range(0, vocabulary, block):
        weight = head.weight[first : first + block]
        bias = None if head.bias is None else head.bias[first : first + block]
        s, g = cap(head, affine(x @ weight.T, bias, head.scale))
        higher = torch.maximum(top, s.amax(1))
        e = s.sub_(higher.unsqueeze(1)).exp_()
        inside = (targets >= first) & (targets < first + block)
        # The target stands apart: near p = 1 it would drown the others in its rounding.
        e[row[inside], targets[inside] - first] = 0
        shrink = (top - higher).exp()
        # Terms are positive and torch sums in pairs: a block needs no wider type, its copy is dear.
        total = total * shrink + e.sum(1)
        if gradient:
            e = e if g is None else e.mul_(g)
            sums.mul_(shrink.unsqueeze(1)).addmm_(e, weight)
        top = higher
    gold = (s_own - top).exp()
    log_p = s_own - top - (total + gold).log()
    if not gradient:
        return log_p.to(x.dtype), None
    others = total / (total + gold)  # 1 - p, exact where p is near 1
    factor = (others if g_own is None else others * g_own).to(x.dtype)
    slope = factor.unsqueeze(1) * own - sums / (total + gold).to(x.dtype).unsqueeze(1)
    return log_p.to(x.dtype), head.scale * slope
