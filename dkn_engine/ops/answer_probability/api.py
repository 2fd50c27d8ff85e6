"""Contract: a gold token's probability for many rows and its gradient, without all their logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dkn_engine.ops.answer_probability import blocked, reference
from dkn_engine.ops.answer_probability.tail import Head, Tail
from dkn_engine.ops.dispatch import choose, triton_refusal

if TYPE_CHECKING:
    import torch


def answer_probability(
    tail: Callable[[torch.Tensor], torch.Tensor] | Tail,
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
        tail: everything after the last block, ``[n, d] -> logits [n, V]``. The reference calls it;
            the kernel needs a :class:`Tail` that can be taken apart into a :class:`Head`, and so
            does the closed form that ``auto`` takes on the CPU (in float32 and float64).
        hidden: ``[N, d]``, output of the last block.
        targets: int64 ``[N]``, gold tokens, on any device; all else is on that of ``hidden``.
        objective: ``probability``, ``log_probability`` or ``logit``.
        gradient: whether the gradient is wanted.
        block: rows whose logits the reference holds at once; the kernel takes all rows and blocks
            of the vocabulary instead.
        backend: see ``AttributionConfig.backend``.

    Returns:
        The objective ``[N]`` (float32, or float64 for float64 models) and the gradient ``[N, d]``
        in the dtype of ``hidden`` (None unless asked for).

    Raises:
        BackendError: ``backend`` cannot run here, or the tail cannot be taken apart.
    """
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be [{hidden.shape[0]}]; got {tuple(targets.shape)}")
    targets = targets.to(hidden.device)
    head = _head(tail, hidden, backend)
    refusal = head if isinstance(head, str) else None
    if choose("answer_probability", backend, hidden, refusal) == "triton":
        from dkn_engine.ops.answer_probability import triton

        assert isinstance(head, Head)
        return triton.answer_probability(head, hidden, targets, objective, gradient)
    if backend == "auto" and isinstance(head, Head) and _suits_blocks(hidden):
        return blocked.answer_probability(head, hidden, targets, objective, gradient)
    return reference.answer_probability(tail, hidden, targets, objective, gradient, block)


def _head(
    tail: Callable[[torch.Tensor], torch.Tensor] | Tail, hidden: torch.Tensor, backend: str
) -> Head | str | None:
    """The tail taken apart, or why it is not; not looked for where no kernel could use it."""
    by_kernel = backend == "triton" or (backend == "auto" and hidden.is_cuda)
    by_kernel = by_kernel and triton_refusal(hidden) is None
    if not by_kernel and not (backend == "auto" and _suits_blocks(hidden)):
        return None
    if not isinstance(tail, Tail):
        return "expected a Tail that can be taken apart; found a function from hidden to logits"
    return tail.head


def _suits_blocks(hidden: torch.Tensor) -> bool:
    """Whether the closed form on the CPU is as exact as the reference and faster."""
    return hidden.device.type == "cpu" and hidden.dtype.itemsize >= 4
