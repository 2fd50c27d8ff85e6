"""The residual stream behind a layer without its MLP's contribution, kept for all path points.

A layer that only adds its MLP's output to the residual stream need not run again for every point of
a path: what it adds to is the same for all of them. Where the output is scaled or normed first, or
is of an unforeseen kind, nothing is kept, and the layer runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Longest that a layer's output may be beside its rest: so many times more is lost in rounding.
_MOST = 2.0


@dataclass(frozen=True, eq=False)
class ResidualStream:
    """The residual stream of a chunk's contexts without each layer's MLP.

    Attributes:
        value: ``[C, L, d]``, layer outputs without the MLPs', in at least float32.
        known: bool ``[C, L]``, whether noted.
    """

    value: Tensor
    known: Tensor

    @classmethod
    def empty(cls, like: Tensor, n_layers: int) -> ResidualStream:
        """Of the contexts, width and device of ``like`` ``[C, d]``, nothing noted."""
        n, d = like.shape
        wide = torch.promote_types(like.dtype, torch.float32)
        value = like.new_empty(n, n_layers, d, dtype=wide)
        return cls(value, torch.zeros(n, n_layers, dtype=torch.bool, device=like.device))

    def note(self, context: Tensor, layer: int, out: Tensor, mlp: Tensor) -> None:
        """Keep ``out - mlp``, rows ``[n, d]`` of a layer that adds its MLP's output.

        Not where the output is most of what comes out: its rounding would be much of the rest.
        """
        rest = out.to(self.value.dtype) - mlp
        self.value[context, layer] = rest.to(self.value.device)
        longest = _MOST * rest.norm(dim=-1)
        self.known[context, layer] = (out.norm(dim=-1) <= longest).to(self.known.device)

    def plus(self, context: Tensor, layer: int, outputs: Tensor) -> Tensor | None:
        """Layer outputs ``[n, S, d]`` for ``outputs`` of the MLP; None if not all are noted."""
        if not bool(self.known[context, layer].all()):
            return None
        rest = self.value[context, layer].unsqueeze(1).to(outputs.device)
        return (rest + outputs).to(outputs.dtype)


def adds(out: Tensor, part: Any) -> bool:
    """Whether ``out`` is a tensor, whose ``grad_fn`` is ``part``, plus what does not depend on it.

    Every step from ``out`` down to ``part`` must be an addition whose other side is a leaf or older
    than ``part``, since nothing depends on what comes after it.
    """
    step: Any = out.grad_fn
    while step is not part:
        if step is None or step.name() != "AddBackward0" or step._saved_alpha != 1:
            return False
        sides = [side for side, _ in step.next_functions]
        # A side without a record may depend on anything.
        if part is None or None in sides:
            return False
        newer = [s for s in sides if s.next_functions and s._sequence_nr() >= part._sequence_nr()]
        if len(newer) != 1:
            return False
        (step,) = newer
    return part is not None
