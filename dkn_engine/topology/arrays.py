"""Checks and conversions of what callers hand in: wrong types here, wrong values in C++."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine.files.sections import integer
from dkn_engine.neurons import sort_neurons
from dkn_engine.types import Component

_MOST = np.iinfo(np.int64).max


def as_weights(w_out: ArrayLike, w_in: ArrayLike) -> tuple[Any, Any]:
    """Both weight matrices, contiguous and of one dtype (float64 if either is).

    Raises:
        TypeError: neither float32 nor float64.
    """
    arrays = [np.asarray(w_out), np.asarray(w_in)]
    for name, array in zip(("w_out", "w_in"), arrays, strict=True):
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} must be float32 or float64; got {array.dtype}")
    dtype = np.result_type(*arrays)
    out, in_ = (np.ascontiguousarray(a, dtype=dtype).reshape(a.shape) for a in arrays)
    return out, in_


def as_distances(distances: ArrayLike) -> NDArray[np.float64]:
    """A distance matrix as contiguous float64.

    Raises:
        TypeError: not real numbers.
    """
    array = np.asarray(distances)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"distances must be real numbers [n, n]; got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float64).reshape(array.shape)


def without_rounding(array: NDArray[np.float64], given: np.dtype[Any]) -> NDArray[np.float64]:
    """A square matrix with the larger of any two mirrored values that differ by rounding alone.

    Args:
        array: float64 ``[n, n]``.
        given: the type its values came in, whose last places count; those of integers are exact.
            Where every value is exactly one of float32, it was rounded as float32.
    """
    if given == np.float64:
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
        given = narrow.dtype if (narrow == array).all() else given
    ulps = 4 * float(np.finfo(given).eps) if given.kind == "f" else 0.0
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.abs(array - array.T)
    close = np.isfinite(apart) & (apart <= ulps * np.abs(array))
    return np.where(close | close.T, np.maximum(array, array.T), array)


def finite_quantile(lengths: NDArray[np.float64], quantile: float) -> float | None:
    """A quantile of the finite ones among some lengths; None if there are none."""
    finite = lengths[np.isfinite(lengths)]
    return float(np.quantile(finite, quantile)) if len(finite) else None


def component(
    neurons: NDArray[np.int32], birth: float = float("nan"), death: float = float("nan")
) -> Component:
    """A component, its neurons sorted; without a filtration it has neither birth nor death."""
    return Component(sort_neurons(neurons), birth=birth, death=death, persistence=death - birth)


def as_span(max_span: int | None) -> int:
    """Most layers that a distance crosses, as the core takes it: 0 for no limit.

    Raises:
        TypeError: neither an integer nor None.
        ValueError: less than 1.
    """
    return 0 if max_span is None else min(_positive("max_span", max_span, " or None"), _MOST)


def as_threads(n_threads: int) -> int:
    """A number of threads, checked also where there is nothing to share among them.

    Raises:
        TypeError: not an integer.
        ValueError: less than 1.
    """
    return _positive("n_threads", n_threads)


def _positive(name: str, given: Any, otherwise: str = "") -> int:
    number = integer(given)
    if number is None:
        raise TypeError(f"{name} must be an integer{otherwise}; got {given!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1{otherwise}; got {number}")
    return number
