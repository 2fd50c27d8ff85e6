"""What all Triton kernels share: the launch, dots, non-linearities and their derivatives.

Kernels are plain ``@triton.jit`` with block sizes from small functions of the shapes, so they also
run in Triton's interpreter, on a CPU; an autotune decorator would need a GPU.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from dkn_engine.errors import BackendError


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a b`` in float32.

    The interpreter multiplies the bits of bfloat16 as if they were integers, so there operands
    are widened first, which is exact; compiled, 16-bit operands go to tensor cores as they are.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:  # noqa: RET505 - both branches are resolved at compile time
        return tl.dot(a, b, acc, input_precision=PRECISION)


# Read when the kernels are decorated, which happens once a process.
INTERPRETED = tl.constexpr(isinstance(dot, InterpretedFunction))


@triton.jit
def tanh(x):
    """Triton has none. The exponential's argument is never positive, so it cannot overflow."""
    e = tl.exp(-2 * tl.abs(x))
    t = (1 - e) / (1 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def sigmoid(x):
    """``1 / (1 + exp(-x))``, with an exponential that cannot overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def activation(z, KIND: tl.constexpr):
    """The non-linearity at float32 ``z``.

    gelu's tanh form, ``z/2 (1 + tanh u)`` with ``u = sqrt(2/pi) (z + 0.044715 z^3)``, is written
    as ``z sigmoid(2u)``, which keeps its digits where tanh is close to -1.
    """
    if KIND == "gelu_tanh":
        y = z * sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif KIND == "gelu_erf":
        y = z * 0.5 * (1 + tl.erf(z * 0.7071067811865476))
    elif KIND == "silu":
        y = z * sigmoid(z)
    else:
        tl.static_assert(KIND == "relu")
        y = tl.maximum(z, 0.0)
    return y


@triton.jit
def slope(z, KIND: tl.constexpr):
    """The derivative of :func:`activation` at float32 ``z``; of relu at 0 it is 0, as in torch."""
    if KIND == "gelu_tanh":
        s = sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
        inner = 1.5957691216057308 * (1 + 0.134145 * z * z)
        # Far out s (1 - s) is 0 while the rest may overflow to infinity.
        y = s + tl.where(tl.abs(z) < 20, z * s * (1 - s) * inner, 0.0)
    elif KIND == "gelu_erf":
        y = 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(
            -0.5 * z * z
        )
    elif KIND == "silu":
        s = sigmoid(z)
        y = s * (1 + z * (1 - s))
    else:
        tl.static_assert(KIND == "relu")
        y = tl.where(z > 0, 1.0, 0.0)
    return y


# Multiply-adds may be fused: Triton's default is about to change, and warns unless it is said.
OPTIONS = {"enable_fp_fusion": True}


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Start ``kernel``; the one place where it happens, so that launches can be recorded.

    Raises:
        BackendError: it does not compile or start. Callers that try whether a model's layers run
            would otherwise take a broken kernel for a layer that does not.
    """
    try:
        with _device_of(args):
            kernel[grid](*args, **OPTIONS, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
        raise BackendError(f"{name} failed: {type(error).__name__}: {error}") from error


def _device_of(args: tuple[Any, ...]) -> contextlib.AbstractContextManager[Any]:
    """Triton starts kernels on the current device, which need not be the tensors'."""
    device = next(a.device for a in args if isinstance(a, torch.Tensor))
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def power_of_2(n: int, low: int, high: int) -> int:
    """The smallest power of two that holds ``n``, within [low, high]."""
    return max(low, min(high, 1 << max(0, n - 1).bit_length()))


def exact_precision(short: bool) -> str:
    """How float32 operands are multiplied in a dot.

    ``ieee`` keeps every digit. Where one operand came ``short``, from 16 bits, three tf32 products
    on tensor cores keep 22 bits of the other one, which NVIDIA has and AMD does not: there ieee
    dots of float32 use the matrix units as they are.
    """
    return "tf32x3" if short and torch.version.hip is None else "ieee"
