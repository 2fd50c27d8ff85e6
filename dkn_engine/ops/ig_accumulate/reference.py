"""The plain torch form of ``ig_accumulate``: the oracle every kernel is compared with."""

from __future__ import annotations

import torch
from torch import nn

Path = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, nn.Module]


def ig_accumulate(
    gradients: torch.Tensor,
    weights: torch.Tensor,
    segments: torch.Tensor,
    w_out: torch.Tensor,
    factor: torch.Tensor,
    path: Path | None,
) -> torch.Tensor:
    wide = torch.promote_types(gradients.dtype, torch.float32)
    g, w, w_out, factor = gradients.to(wide), weights.to(wide), w_out.to(wide), factor.to(wide)
    n_segments = factor.shape[0]
    if path is None:
        weighted = w.unsqueeze(-1) * g  # [K, N, d]
        summed = g.new_zeros(w.shape[0], n_segments, g.shape[1])
        summed.index_add_(1, segments, weighted)
        return (summed @ w_out.T) * factor
    alphas, baseline, delta, up, act = path
    local = g @ w_out.T  # [N, F], gradient at the down projection's input
    if up is not None:
        local = local * up.to(wide)[segments]
    z = baseline.to(wide)[segments] + alphas.to(wide).unsqueeze(-1) * delta.to(wide)[segments]
    local = local * derivative(act, z)
    summed = g.new_zeros(w.shape[0], n_segments, w_out.shape[0])
    summed.index_add_(1, segments, w.unsqueeze(-1) * local)
    return summed * factor


def derivative(act: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """The elementwise derivative of ``act`` at ``z``, by autograd."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(act(z).sum(), z)
    return grad
