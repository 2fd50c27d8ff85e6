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
    wide = torch.promote_types(value.dtype, torch.float32)
    start = baseline.to(wide)
    z = start + alphas.to(wide).unsqueeze(-1) * (value.to(wide) - start)
    out: torch.Tensor = act(z)
    return (out if up is None else out * up.to(wide)).to(value.dtype)
