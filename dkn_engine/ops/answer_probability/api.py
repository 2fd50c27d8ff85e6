"""Contract: a gold token's probability for many rows and its gradient, without all their logits."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dkn_engine.ops.answer_probability import blocked, reference
from dkn_engine.ops.answer_probability.tail import Head, Tail, target_logit
from dkn_engine.ops.dispatch import choose, triton_refusal


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
    head, by_kernel = _chosen(tail, hidden, backend)
    if head is None:
        return reference.answer_probability(tail, hidden, targets, objective, gradient, block)
    if by_kernel:
        from dkn_engine.ops.answer_probability import triton

        return triton.answer_probability(head, hidden, targets, objective, gradient)
    return blocked.answer_probability(head, hidden, targets, objective, gradient)


@torch.no_grad()
def token_logits(
    tail: Callable[[torch.Tensor], torch.Tensor] | Tail,
    hidden: torch.Tensor,
    tokens: torch.Tensor,
    *,
    block: int = 64,
    backend: str = "auto",
) -> torch.Tensor:
    """Logits ``[N, K]`` of K tokens a row, in at least float32; a dot product each where it can be.

    ``tokens`` is int64 ``[N, K]``; the other arguments, and errors, as of
    :func:`answer_probability`.
    """
    tokens = tokens.to(hidden.device)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    head, _ = _chosen(tail, hidden, backend)
    if head is not None:
        x = head.norm(hidden)
        columns = [target_logit(head, x, column)[1].to(wide) for column in tokens.unbind(1)]
        return torch.stack(columns, dim=1)
    parts = zip(torch.split(hidden, block), torch.split(tokens, block), strict=True)
    return torch.cat([tail(some).gather(1, own).to(wide) for some, own in parts])


def _chosen(
    tail: Callable[[torch.Tensor], torch.Tensor] | Tail, hidden: torch.Tensor, backend: str
) -> tuple[Head | None, bool]:
    """The tail taken apart, if that is how its logits are had, and whether by the kernel."""
    head = _head(tail, hidden, backend)
    refusal = head if isinstance(head, str) else None
    if choose("answer_probability", backend, hidden, refusal) == "triton":
        assert isinstance(head, Head)
        return head, True
    if backend == "auto" and isinstance(head, Head) and _suits_blocks(hidden):
        return head, False
    return None, False


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
