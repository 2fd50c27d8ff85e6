"""Contract: the integrated-gradient sum of path points, for ragged segments of points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkn_engine.ops.activation import kernel_kind, kernel_refusal
from dkn_engine.ops.dispatch import choose
from dkn_engine.ops.ig_accumulate import reference

if TYPE_CHECKING:
    import torch


def ig_accumulate(
    gradients: torch.Tensor,
    weights: torch.Tensor,
    segments: torch.Tensor,
    w_out: torch.Tensor,
    factor: torch.Tensor,
    *,
    path: reference.Path | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Scores ``[K, M, F]`` of K rules over M segments of path points.

    ``post`` site (``path`` is None), where the path is straight in model space:
    ``(sum_s w_s G_s) W_out * factor``. ``pre`` site:
    ``sum_s w_s (G_s W_out) * up * act'(x' + alpha_s delta) * factor``.

    Args:
        gradients: ``[N, d]``, gradient of the objective at the MLP's output, one row a point.
        weights: ``[K, N]``, quadrature weights of K rules.
        segments: int64 ``[N]``, the segment (fact, token, panel) of each point, in [0, M).
        w_out: ``[F, d]``, row i is what neuron i adds to the output.
        factor: ``[M, F]``, usually x - x'.
        path: for ``pre``: alphas ``[N]``, baselines ``[M, F]``, deltas ``[M, F]``, the up factor
            ``[M, F]`` or None, and the non-linearity.
        backend: see ``AttributionConfig.backend``.

    Returns:
        ``[K, M, F]`` in float32, or float64 for float64 inputs. An empty segment gives zeros.

    Raises:
        BackendError: ``backend`` cannot run here, or does not know the path's non-linearity.

    Source:
        Sundararajan et al., Axiomatic Attribution for Deep Networks, equation 1 (arXiv 1703.01365).
    """
    if weights.ndim != 2 or weights.shape[1] != gradients.shape[0]:
        expected = f"[K, {gradients.shape[0]}]"
        raise ValueError(f"weights must have shape {expected}; got {tuple(weights.shape)}")
    _require_shapes(gradients, segments, w_out, factor, path)
    refusal = unknown = None if path is None else kernel_refusal(path[4])
    # The kernel multiplies two tensors of one dtype, exactly; it does not round one to match.
    if gradients.dtype != w_out.dtype:
        found = f"{gradients.dtype} and {w_out.dtype}"
        refusal = f"expected gradients and w_out of one dtype; found {found}"
    chosen = choose(
        "ig_accumulate",
        backend,
        gradients,
        refusal,
        loop_refusal=unknown,
        loop_wins=path is not None,
    )
    if chosen == "reference":
        return reference.ig_accumulate(gradients, weights, segments, w_out, factor, path)
    inner = None
    if path is not None:
        kind = kernel_kind(path[4])
        assert kind is not None
        inner = (*path[:4], kind)
    if chosen == "numba":
        from dkn_engine.ops.ig_accumulate import numba

        return numba.ig_accumulate(gradients, weights, segments, w_out, factor, inner)
    from dkn_engine.ops.ig_accumulate import triton

    return triton.ig_accumulate(gradients, weights, segments, w_out, factor, inner)


def _require_shapes(
    gradients: torch.Tensor,
    segments: torch.Tensor,
    w_out: torch.Tensor,
    factor: torch.Tensor,
    path: reference.Path | None,
) -> None:
    """Compiled code reads where it is told to; torch would stretch or refuse what does not fit."""
    n, table = gradients.shape[:1], factor.shape
    expected: list[tuple[str, torch.Tensor | None, tuple[int, ...]]]
    expected = [("w_out", w_out, (table[-1], gradients.shape[1])), ("segments", segments, n)]
    if path is not None:
        names, shapes = ("alphas", "baselines", "deltas", "up"), (n, table, table, table)
        expected += zip(names, path[:4], shapes, strict=True)
    for name, given, shape in expected:
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}; got {tuple(given.shape)}")
