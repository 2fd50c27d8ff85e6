"""Contract: the MLP's inner activation at points of the integration path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkn_engine.ops.activation import kernel_kind, kernel_refusal
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
        ``[N, F]`` in the dtype of ``value``; computed in at least float32. No backward is
        promised: points of a path are where gradients are taken, not what they flow through.

    Raises:
        BackendError: ``backend`` cannot run here, or does not know ``act``.
    """
    if baseline.shape != value.shape or alphas.shape != value.shape[:1]:
        shapes = f"{tuple(alphas.shape)}, {tuple(baseline.shape)}, {tuple(value.shape)}"
        raise ValueError(f"alphas, baseline, value must be [N], [N, F], [N, F]; got {shapes}")
    if up is not None and up.shape != value.shape:
        raise ValueError(f"up must be {tuple(value.shape)}; got {tuple(up.shape)}")
    kind, unknown = kernel_kind(act), kernel_refusal(act)
    chosen = choose(
        "path_activation", backend, value, unknown, loop_refusal=unknown, loop_wins=True
    )
    if chosen == "reference":
        return reference.path_activation(alphas, baseline, value, up, act)
    assert kind is not None
    if chosen == "triton":
        from dkn_engine.ops.path_activation import triton

        return triton.path_activation(alphas, baseline, value, up, kind)
    from dkn_engine.ops.path_activation import numba

    return numba.path_activation(alphas, baseline, value, up, kind)
