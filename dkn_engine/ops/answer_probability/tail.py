"""Everything after the last block: the model's own, and where possible taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Head:
    """A tail whose projection a kernel can do: ``cap(scale * (norm(h) W^T + b))``.

    Attributes:
        norm: everything between the last block and the projection, ``[n, d] -> [n, d]``, through
            which autograd passes.
        weight: ``[V, d]``, tied to the embeddings or not.
        bias: ``[V]``, or None.
        scale: factor on the logits.
        softcap: ``s -> softcap * tanh(s / softcap)`` on the scaled logits, if given.
    """

    norm: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[n, V]``, to compare with the model's own; in the dtype of the weight."""
        found = torch.nn.functional.linear(self.norm(hidden), self.weight, self.bias) * self.scale
        if self.softcap is not None:
            found = self.softcap * torch.tanh(found / self.softcap)
        return found


class Tail:
    """Logits of the last block's outputs, ``[n, d] -> [n, V]``.

    Args:
        logits: by the model's own code.
        take_apart: finds the same as a :class:`Head`, or says why it cannot; called when a kernel
            asks for it, at most once.
    """

    def __init__(
        self, logits: Callable[[torch.Tensor], torch.Tensor], take_apart: Callable[[], Head | str]
    ) -> None:
        self._logits, self._take_apart = logits, take_apart
        self._head: Head | str | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits(hidden)

    @property
    def head(self) -> Head | str:
        """The tail taken apart, or why it cannot be."""
        if self._head is None:
            self._head = self._take_apart()
        return self._head


def behind_norm(
    log_probability: Callable[..., tuple[torch.Tensor, torch.Tensor | None]],
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    objective: str,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The objective ``[N]`` and its gradient ``[N, d]``, by a closed form of all behind the norm.

    ``log_probability(head, x, targets, gradient)`` gives log p and, if asked for, its gradient in
    the normed hidden states ``x [N, d]``. A logit is one dot product a row, whatever the kernel.
    """
    with torch.set_grad_enabled(gradient):
        leaf = hidden.detach().requires_grad_(gradient)
        normed = head.norm(leaf)
    closed_form = _logit if objective == "logit" else log_probability
    value, slope = closed_form(head, normed.detach(), targets, gradient)
    value = value.exp() if objective == "probability" else value
    if slope is None:
        return value, None
    if objective == "probability":
        slope = slope * value.unsqueeze(1)
    (found,) = torch.autograd.grad(normed, leaf, slope.to(normed.dtype))
    return value, found


@torch.no_grad()
def _logit(
    head: Head, x: torch.Tensor, targets: torch.Tensor, gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logit ``[N]`` of the targets, and its gradient ``[N, d]`` in ``x``."""
    own, logit, slope = target_logit(head, x, targets)
    value = logit.to(torch.promote_types(x.dtype, torch.float32))
    if not gradient:
        return value, None
    factor = torch.full_like(logit, head.scale) if slope is None else head.scale * slope
    return value, factor.unsqueeze(1) * own


def target_logit(
    head: Head, x: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The targets' rows ``[N, d]`` of the projection, their logits ``[N]``, and those' slopes.

    Logits are float64, which costs nothing for a number a row; slopes as :func:`cap` gives them.
    """
    own = head.weight[targets]
    bias = None if head.bias is None else head.bias[targets]
    dot = (x.double() * own.double()).sum(1)
    return own, *cap(head, affine(dot, bias, head.scale))


def affine(z: torch.Tensor, bias: torch.Tensor | None, scale: float) -> torch.Tensor:
    z = z if bias is None else z + bias
    return z if scale == 1 else z * scale


def cap(head: Head, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Capped logits, and their derivative in the logits before the cap (None: 1)."""
    if head.softcap is None:
        return z, None
    tanh = torch.tanh(z / head.softcap)
    return head.softcap * tanh, 1 - tanh * tanh
