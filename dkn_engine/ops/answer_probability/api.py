"""Contract: a gold token's probability for many rows, and its gradient, in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dkn_engine.ops.answer_probability import reference
from dkn_engine.ops.dispatch import choose

if TYPE_CHECKING:
    import torch


def answer_probability(
    tail: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    targets: torch.Tensor,
    *,
    objective: str,
    gradient: bool,
    block: int = 64,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The objective of each row and its gradient with respect to the last block's output.

    Args:
        tail: everything after the last block, ``[n, d] -> logits [n, V]``.
        hidden: ``[N, d]``, output of the last block.
        targets: int64 ``[N]``, gold tokens.
        objective: ``probability`` or ``log_probability``.
        gradient: whether the gradient is wanted.
        block: rows whose logits are held at once.
        backend: see ``AttributionConfig.backend``.

    Returns:
        The objective ``[N]`` (float32, or float64 for float64 models) and the gradient ``[N, d]``
        in the dtype of ``hidden`` (None unless asked for).
    """
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be [{hidden.shape[0]}]; got {tuple(targets.shape)}")
    run = choose("answer_probability", backend, {"reference": reference.answer_probability})
    return run(tail, hidden, targets, objective, gradient, block)
