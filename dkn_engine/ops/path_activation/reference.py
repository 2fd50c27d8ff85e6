"""The plain torch form of ``path_activation``."""

from __future__ import annotations

import torch
from torch import nn


def path_activation(
    alphas: torch.Tensor,
    baseline: torch.Tensor,
    value: torch.Tensor,
    up: torch.Tensor | None,
    act: nn.Module,
) -> torch.Tensor:
    z = baseline + alphas.to(value.dtype).unsqueeze(-1) * (value - baseline)
    out: torch.Tensor = act(z)
    return out if up is None else out * up
