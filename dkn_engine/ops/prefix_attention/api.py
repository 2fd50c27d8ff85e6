"""Contract: attention of rows that see a shared prefix and themselves, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkn_engine.ops.dispatch import choose
from dkn_engine.ops.prefix_attention import reference

if TYPE_CHECKING:
    import torch


def prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    visible: torch.Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Row r of context c attends to the visible prefix positions of c and to itself.

    Args:
        query: ``[C, H, R, D]``; key: ``[C, H_kv, R, D]``; value: ``[C, H_kv, R, Dv]``; the rows'
            own projections, H a multiple of H_kv (grouped queries).
        prefix_key: ``[C, H_kv, T, D]``; prefix_value: ``[C, H_kv, T, Dv]``.
        visible: bool ``[C, T]``; padding and positions outside a sliding window are False.
        scaling: factor on the dot products.
        softcap: ``s -> softcap * tanh(s / softcap)`` before the softmax, if given.
        backend: see ``AttributionConfig.backend``.

    Returns:
        ``[C, H, R, Dv]`` in the dtype of ``query``; differentiable in query, key and value.

    Raises:
        BackendError: ``backend`` cannot run here.
    """
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of {key.shape[1]}; got {query.shape[1]}")
    given = (query, key, value, prefix_key, prefix_value, visible)
    if choose("prefix_attention", backend, query, _refusal(prefix_key, prefix_value)) == "triton":
        from dkn_engine.ops.prefix_attention import triton

        return triton.prefix_attention(*given, scaling, softcap)
    return reference.prefix_attention(*given, scaling, softcap)


def _refusal(prefix_key: torch.Tensor, prefix_value: torch.Tensor) -> str | None:
    if prefix_key.requires_grad or prefix_value.requires_grad:
        return "its backward gives the prefix no gradient, and the prefix requires one"
    return None
