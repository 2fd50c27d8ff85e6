"""Sets of MLP neurons as arrays: int32 ``[n, 2]``, columns layer and index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_neurons(neurons: ArrayLike) -> NDArray[np.int32]:
    """Located neurons as contiguous int32 ``[n, 2]``; an empty list is no neurons.

    Raises:
        TypeError: not integers.
        ValueError: wrong shape, or numbers that 32 bits cannot hold.
    """
    if isinstance(neurons, Mapping):
        first = f"the key {next(iter(neurons))!r}" if neurons else "no key"
        raise TypeError(
            "neurons must be integers [n, 2], columns layer and index; got a "
            f"{type(neurons).__name__} with {first}: neurons by the name of a hook or module are "
            "for other libraries, by fact id for answer_probability; give the array itself"
        )
    array = np.asarray(neurons)
    if array.size == 0 and (array.ndim == 1 or array.shape[1:] == (2,)):
        return np.empty((0, 2), dtype=np.int32)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"neurons must be integers [n, 2]; got {array.dtype}")
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"neurons must be [n, 2]; got {list(array.shape)}")
    if array.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"neurons must fit in 32 bits; got {array.max()}")
    if array.min(initial=0) < 0:
        raise ValueError(f"neurons must not be negative; got {array.min()}")
    return np.ascontiguousarray(array, dtype=np.int32)


def as_distinct_neurons(neurons: ArrayLike) -> NDArray[np.int32]:
    """As :func:`as_neurons`, for sets in which no neuron may be there twice.

    Raises:
        TypeError: not integers.
        ValueError: wrong shape or numbers; or names a neuron that is there twice.
    """
    array = as_neurons(neurons)
    codes = np.sort(encode(array))
    twice = codes[:-1] == codes[1:]
    if twice.any():
        layer, index = divmod(int(codes[:-1][twice][0]), 1 << 32)
        raise ValueError(f"neurons must be distinct; got ({layer}, {index}) twice")
    return array


def encode(neurons: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number a neuron, int64 ``[n]``, in the order of (layer, index)."""
    return neurons[:, 0].astype(np.int64) << 32 | neurons[:, 1]


def sort_neurons(neurons: NDArray[np.int32]) -> NDArray[np.int32]:
    """The same neurons by layer, then index."""
    return neurons[np.argsort(encode(neurons), kind="stable")]


def union(sets: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """All neurons of the sets, each once, by layer, then index."""
    every = np.concatenate([np.empty((0, 2), dtype=np.int32), *sets])
    _, first = np.unique(encode(every), return_index=True)
    return every[first]


def adjacent_pairs(neurons: NDArray[np.int32]) -> NDArray[np.int64]:
    """Pairs of neurons in adjacent layers, int64 ``[m, 2]``: positions of the lower and the upper.

    By layer, then by the index of the lower neuron, then of the upper one.
    """
    order = np.argsort(encode(neurons), kind="stable")
    layers = neurons[order, 0]
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for layer in np.unique(layers).tolist():
        low, high = order[layers == layer], order[layers == layer + 1]
        pairs.append(np.stack([np.repeat(low, len(high)), np.tile(high, len(low))], axis=1))
    return np.concatenate(pairs)


def existing(shape: tuple[int, ...], widths: Sequence[int] | None) -> NDArray[np.bool_]:
    """Which places of a table ``[L, F]`` are neurons, of layers with so many each; None: all.

    Raises:
        ValueError: widths of another number of layers.
    """
    if widths is None:
        return np.ones(shape, dtype=bool)
    if len(widths) != shape[0]:
        raise ValueError(f"widths must be of the scores' {shape[0]} layers; got {len(widths)}")
    found: NDArray[np.bool_] = np.arange(shape[1]) < np.asarray(widths)[:, None]
    return found


def random_sets(
    sets: Sequence[NDArray[np.int32]],
    located: NDArray[np.int32],
    widths: int | Sequence[int],
    rng: np.random.Generator,
) -> list[NDArray[np.int32]]:
    """Disjoint sets of other neurons: in every layer as many as each of the given sets has.

    Args:
        sets: the family to be matched.
        located: neurons never drawn (the fact's knowledge neurons).
        widths: neurons of each layer, or of all.
        rng: of the draw.
    """
    every = np.concatenate([np.empty((0, 2), dtype=np.int32), *sets])
    drawn = np.empty_like(every)
    for layer in np.unique(every[:, 0]):
        at = np.flatnonzero(every[:, 0] == layer)
        width = widths if isinstance(widths, int) else widths[layer]
        is_free = np.ones(width, dtype=bool)
        is_free[located[located[:, 0] == layer, 1]] = False
        free = np.flatnonzero(is_free)
        # A layer that is nearly all located cannot be matched without them.
        pool = free if len(free) >= len(at) else np.arange(width)
        drawn[at, 0] = layer
        drawn[at, 1] = rng.choice(pool, size=len(at), replace=False)
    ends = np.cumsum([len(s) for s in sets])
    return np.split(drawn, ends)[: len(sets)]
