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
    the normed hidden states ``x [N, d]``.
    """
    with torch.set_grad_enabled(gradient):
        leaf = hidden.detach().requires_grad_(gradient)
        normed = head.norm(leaf)
    log_p, slope = log_probability(head, normed.detach(), targets, gradient)
    value = log_p if objective == "log_probability" else log_p.exp()
    if slope is None:
        return value, None
    if objective == "probability":
        slope = slope * value.unsqueeze(1)
    (found,) = torch.autograd.grad(normed, leaf, slope.to(normed.dtype))
    return value, found
