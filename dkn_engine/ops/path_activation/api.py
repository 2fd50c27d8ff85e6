"""Contract: the MLP's inner activation at points of the integration path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkn_engine.ops.dispatch import choose
from dkn_engine.ops.path_activation import reference

if TYPE_CHECKING:
    import torch
    from torch import nn


def path_activation(
    alphas: torch.Tensor,
    baseline: torch.Tensor,
    value: torch.Tensor,
    up: torch.Tensor | None,
    act: nn.Module,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """``act(x' + alpha (x - x')) * up``, the down projection's input, one row a path point.

    Args:
        alphas: ``[N]`` in [0, 1].
        baseline, value: ``[N, F]``, x' and x at the input of the non-linearity.
        up: ``[N, F]``, the linear factor of a gated MLP, or None.
        act: the model's non-linearity.
        backend: see ``AttributionConfig.backend``.

    Returns:
        ``[N, F]`` in the dtype of ``value``.
    """
    if baseline.shape != value.shape or alphas.shape != value.shape[:1]:
        shapes = f"{tuple(alphas.shape)}, {tuple(baseline.shape)}, {tuple(value.shape)}"
        raise ValueError(f"alphas, baseline, value must be [N], [N, F], [N, F]; got {shapes}")
    run = choose("path_activation", backend, {"reference": reference.path_activation})
    return run(alphas, baseline, value, up, act)
