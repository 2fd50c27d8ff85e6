"""Which implementation of an operation runs: an explicit request runs or raises."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from dkn_engine.errors import BackendError

IMPLEMENTATIONS = ("reference", "triton", "numba")
# The others are matrix products, which BLAS does: a loop of ours would only be slower.
LOOPS = ("ig_accumulate", "path_activation")
# Loops work in one thread. Up to here they were measured against torch's threads, and won.
_MOST_THREADS = 2


def choose(
    operation: str,
    backend: str,
    on: torch.Tensor,
    refusal: str | None = None,
    *,
    loop_refusal: str | None = None,
    loop_wins: bool = False,
) -> str:
    """The implementation of ``operation`` that runs for ``backend``.

    ``auto`` takes the Triton kernels for tensors on a GPU where they serve the request, the
    compiled loops on the CPU where they win, and the reference for everything else. An explicit
    name is obeyed or refused. ``numba`` is by definition a compiled loop for each of ``LOOPS`` and
    the reference for the operations that are matrix products.

    Args:
        operation: its name, for the message.
        backend: see ``AttributionConfig.backend``.
        on: one of the operation's tensors; its device and dtype are what kernels depend on.
        refusal: why the operation's kernel does not serve this request, or None.
        loop_refusal: why its compiled loop does not.
        loop_wins: whether that is faster than the reference, in numbers shorter than float64.

    Raises:
        BackendError: ``backend`` cannot run this; the message says why and what there is.
    """
    if backend == "auto":
        if on.is_cuda and refusal is None and triton_refusal(on) is None:
            return "triton"
        if loop_wins and loop_refusal is None and _loops_win(on):
            return "numba"
        return "reference"
    if backend not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        why = " (the C++ code is for topology, which always uses it)" if backend == "native" else ""
        message = f"{operation}: backend {backend!r} is not available; found: {known}{why}"
        raise BackendError(message)
    reason = None
    if backend == "triton":
        reason = triton_refusal(on) or refusal
    elif backend == "numba":
        reason = numba_refusal(on) or loop_refusal
    if reason is not None:
        raise BackendError(f"{operation}: backend {backend!r} cannot run here: {reason}")
    return "reference" if backend == "numba" and operation not in LOOPS else backend


def _loops_win(on: torch.Tensor) -> bool:
    few = torch.get_num_threads() <= _MOST_THREADS
    return few and on.dtype != torch.float64 and numba_refusal(on) is None


def numba_refusal(on: torch.Tensor) -> str | None:
    """Why no compiled loop can work on this tensor, or None if one can; imports numba."""
    if on.device.type != "cpu":
        return f"expected tensors on the CPU; found {on.device}"
    if on.dtype not in {torch.float64, torch.float32, torch.float16, torch.bfloat16}:
        return f"expected float64, float32, float16 or bfloat16 tensors; found {on.dtype}"
    try:
        from dkn_engine.ops._numba import loops  # noqa: F401
    except ImportError as error:
        return f"numba cannot be imported ({error})"
    except RuntimeError as error:
        return f"{error}; set NUMBA_CACHE_DIR to a directory where numba may write"
    return None


def triton_refusal(on: torch.Tensor) -> str | None:
    """Why no Triton kernel can work on this tensor, or None if one can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if on.dtype not in {torch.float32, torch.float16, torch.bfloat16}:
        return f"expected float32, float16 or bfloat16 tensors; found {on.dtype}"
    if on.is_cuda:
        return None
    from dkn_engine.ops._triton.blocks import INTERPRETED

    if INTERPRETED.value and on.device.type == "cpu":
        return None
    return (
        f"expected tensors on a GPU; found {on.device} "
        "(TRITON_INTERPRET=1, set before the start, runs the kernels on the CPU, for tests)"
    )
