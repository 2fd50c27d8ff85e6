"""The compiled CPU loops: non-linearities that LLVM turns into vector instructions, and three sums.

numba finds out that its cache is stale from the file of the function that is called, and from no
other. So everything that is compiled stands in this one file; the folders of the operations hold
what is around it. All loops run in the caller's thread, without the interpreter's lock.

Where numba calls the C library's ``exp`` and ``erf``, one number is computed at a time. In float32,
which models use, they are written out instead; float64 calls the library.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core.errors import NumbaError
from numba.extending import overload
from torch import Tensor

from dkn_engine.errors import BackendError

# Multiply-adds may be fused; nothing else is reordered. Without "numpy", a division by zero would
# raise, and a loop that can raise is not vectorised.
_NUMBERS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
KINDS = ("gelu_tanh", "gelu_erf", "silu", "relu")
GELU_TANH, GELU_ERF, SILU, RELU = range(len(KINDS))

# erfc(y) exp(y^2) / 2 at y = z / sqrt(2) as a polynomial in (z - 4) / (z + 4), highest power first:
# a fit of ours to scipy's erfcx, 2e-8 off for z from 0 to 40, where exp(-z^2 / 2) is 0.
_TAIL = (
    1.918738135e-05,
    -3.668748876e-05,
    -0.0001785657172,
    0.0006315208752,
    0.0005040973081,
    -0.008489362484,
    0.03086535455,
    -0.07170782558,
    0.1243792339,
    -0.1703977042,
    0.09441064119,
)


def run(loop: Any, *args: Any) -> None:
    """Call a compiled loop.

    Raises:
        BackendError: it does not compile. Callers that try whether a model's layers run would
            otherwise take that for a layer that does not.
    """
    try:
        loop(*args)
    except NumbaError as error:
        message = f"{loop.__module__}.{loop.__name__} failed: {type(error).__name__}: {error}"
        raise BackendError(message) from error


def array(x: Tensor, dtype: torch.dtype) -> Any:
    """The tensor's values as a contiguous NumPy array; a copy only where needed."""
    return x.detach().to(dtype).contiguous().numpy()


def _decay(x: Any) -> Any:
    """``exp(x)`` of ``x <= 0``."""


@overload(_decay)
def _decay_of(x: Any) -> Any:
    if x is not types.float32:

        def by_library(x: Any) -> Any:
            return math.exp(x)

        return by_library
    real = np.float32
    lowest, log2e, shift = real(-87), real(1 / math.log(2)), real(1.5 * 2**23)
    # ln 2 in two parts, of which the first times a whole number below 2^8 is exact.
    high, low = real(0.693359375), real(math.log(2) - 0.693359375)
    terms = tuple(real(1 / math.factorial(i)) for i in range(7, -1, -1))
    bias, zero = np.int32(127), real(0)

    def by_power_of_2(x: Any) -> Any:
        """``2^n exp(r)`` with whole n and ``|r| <= ln(2) / 2``, where seven terms are enough."""
        inside = x if x > lowest else lowest
        n = (inside * log2e + shift) - shift
        r = (inside - n * high) - n * low
        p = zero
        for term in terms:
            p = p * r + term
        power = np.int32((np.int32(n) + bias) << 23).view(np.float32)
        return p * power if x >= lowest else zero

    return by_power_of_2


def _tail(z: Any, e: Any) -> Any:
    """``erfc(z / sqrt(2)) / 2`` of ``z >= 0``, from it and ``e = exp(-z^2 / 2)``."""


@overload(_tail)
def _tail_of(z: Any, e: Any) -> Any:
    if z is not types.float32:
        root = math.sqrt(0.5)

        def by_library(z: Any, e: Any) -> Any:
            return 0.5 * math.erfc(z * root)

        return by_library
    four, zero = np.float32(4), np.float32(0)
    terms = tuple(np.float32(c) for c in _TAIL)

    def by_polynomial(z: Any, e: Any) -> Any:
        t = (z - four) / (z + four)
        p = zero
        for term in terms:
            p = p * t + term
        return p * e

    return by_polynomial


def _formulas(real: Any) -> tuple[Any, Any]:
    """The non-linearities and their derivatives in one precision."""
    zero, half, one, far = real(0), real(0.5), real(1), real(20)
    twice, cubic, cubic3 = real(2 * math.sqrt(2 / math.pi)), real(0.044715), real(3 * 0.044715)
    density = real(1 / math.sqrt(2 * math.pi))

    def activation(kind: Any, z: Any) -> Any:
        if kind == RELU:
            return zero if z <= zero else z
        if kind == GELU_ERF:
            size = abs(z)
            q = _tail(size, _decay(-half * size * size))
            return z * (q if z < zero else one - q)
        # z/2 (1 + tanh u) is z sigmoid(2u), which keeps its digits where tanh is close to -1.
        u = z if kind == SILU else twice * (z + cubic * z * z * z)
        e = _decay(-abs(u))
        return z * ((e if u < zero else one) / (one + e))

    def slope(kind: Any, z: Any) -> Any:
        if kind == RELU:
            return zero if z <= zero else one
        if kind == GELU_ERF:
            size = abs(z)
            e = _decay(-half * size * size)
            q = _tail(size, e)
            return (q if z < zero else one - q) + z * density * e
        u = z if kind == SILU else twice * (z + cubic * z * z * z)
        inner = one if kind == SILU else twice * (one + cubic3 * z * z)
        e = _decay(-abs(u))
        share = one / (one + e)
        # Far out e is 0, while the rest may overflow to infinity.
        change = zero if kind == GELU_TANH and abs(z) >= far else z * inner * e * share * share
        return (e if u < zero else one) * share + change

    return activation, slope


def _activation(kind: Any, z: Any) -> Any:
    """The non-linearity at ``z``."""


def _slope(kind: Any, z: Any) -> Any:
    """Its derivative at ``z``; of relu at 0 it is 0, as in torch."""


@overload(_activation)
def _activation_of(kind: Any, z: Any) -> Any:
    return _formulas(np.float32 if z is types.float32 else np.float64)[0]


@overload(_slope)
def _slope_of(kind: Any, z: Any) -> Any:
    return _formulas(np.float32 if z is types.float32 else np.float64)[1]


@njit(forceinline=True, **_NUMBERS)
def _activations(kind, alpha, start, end, out):
    for j in range(len(out)):
        out[j] = _activation(kind, start[j] + alpha * (end[j] - start[j]))


@njit(forceinline=True, **_NUMBERS)
def _times_slopes(kind, alpha, start, change, out):
    for j in range(len(out)):
        out[j] *= _slope(kind, start[j] + alpha * change[j])


@njit(forceinline=True, **_NUMBERS)
def _times(values, out):
    for j in range(len(out)):
        out[j] *= values[j]


@njit(forceinline=True, **_NUMBERS)
def _add(weight, values, out):
    for j in range(len(out)):
        out[j] += weight * values[j]


@njit(cache=True, nogil=True, **_NUMBERS)
def points(kind, alphas, start, end, up, out):
    """``out = act(start + alpha (end - start)) * up``; ``[N]`` and ``[N, F]``, up may be None."""
    for s in range(len(out)):
        given, row = (alphas[s], start[s], end[s]), out[s]
        # A kind that is known where a row is looped over leaves no branch in that loop.
        if kind == GELU_TANH:
            _activations(GELU_TANH, *given, row)
        elif kind == GELU_ERF:
            _activations(GELU_ERF, *given, row)
        elif kind == SILU:
            _activations(SILU, *given, row)
        else:
            _activations(RELU, *given, row)
        if up is not None:
            _times(up[s], row)


@njit(cache=True, nogil=True, **_NUMBERS)
def step_sum(weights, segments, rows, out):
    """Add ``rows [N, d]``, times K weights ``[N, K]``, to their segments of ``out [K, M, d]``."""
    for s in range(len(rows)):
        for k in range(len(out)):
            _add(weights[s, k], rows[s], out[k, segments[s]])


@njit(cache=True, nogil=True, **_NUMBERS)
def slope_sum(kind, alphas, weights, segments, start, change, up, rows, out):
    """:func:`step_sum` of ``rows * act'(start + alpha change) * up``; the rows are overwritten.

    ``start``, ``change`` and ``up`` are ``[M, F]``, a row a segment; ``up`` may be None.
    """
    for s in range(len(rows)):
        m = segments[s]
        given, row = (alphas[s], start[m], change[m]), rows[s]
        if kind == GELU_TANH:
            _times_slopes(GELU_TANH, *given, row)
        elif kind == GELU_ERF:
            _times_slopes(GELU_ERF, *given, row)
        elif kind == SILU:
            _times_slopes(SILU, *given, row)
        else:
            _times_slopes(RELU, *given, row)
        if up is not None:
            _times(up[m], row)
        for k in range(len(out)):
            _add(weights[s, k], row, out[k, m])
