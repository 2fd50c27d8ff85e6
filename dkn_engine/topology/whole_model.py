"""H0 of all neurons of a model, layer by layer, without the matrix of their distances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine import _native
from dkn_engine.topology.arrays import as_threads, as_weights
from dkn_engine.topology.tree import MergeTree

Block = tuple[ArrayLike, ArrayLike]
Blocks = Sequence[Block] | Callable[[], Iterable[Block]]


@dataclass(frozen=True, slots=True, eq=False)
class LayerPair:
    """The connections between a layer and the next one.

    Attributes:
        lower: number of the lower layer.
        neurons: int32 ``[k, 2]``, the strongest connections, by ascending distance, ties by
            neuron; columns are the index in the lower layer and in the next one.
        weights: float64 ``[k]``, with their signs.
        mean_absolute_weight: over all connections of the two layers; 0 where there are none.
    """

    lower: int
    neurons: NDArray[np.int32]
    weights: NDArray[np.float64]
    mean_absolute_weight: float


@dataclass(frozen=True, slots=True, eq=False)
class ModelTree:
    """Merge tree of all neurons of a model.

    Neurons are numbered layer after layer.

    Attributes:
        tree: the merge tree, as :func:`merge_tree` gives it for all neurons in that order.
        edges: int32 ``[m, 2]``, the neurons that each merge's edge joins: the minimum spanning
            forest.
        widths: neurons of each layer.
        layer_pairs: one for each two adjacent layers, from the lowest up.
        n_passes: passes over the weights.
        n_dots: dot products taken in all of them.
    """

    tree: MergeTree
    edges: NDArray[np.int32]
    widths: tuple[int, ...]
    layer_pairs: tuple[LayerPair, ...]
    n_passes: int
    n_dots: int

    def neurons(self, points: ArrayLike) -> NDArray[np.int32]:
        """Layer and index of points, int32 ``[..., 2]``."""
        numbers = np.asarray(points)
        firsts = np.concatenate([[0], np.cumsum(self.widths)])
        layers = np.searchsorted(firsts, numbers, side="right") - 1
        return np.stack([layers, numbers - firsts[layers]], axis=-1).astype(np.int32)


def model_merge_tree(
    blocks: Blocks, *, n_strongest: int = 10, list_length: int = 8, n_threads: int = 1
) -> ModelTree:
    """Merge tree of all neurons of a stack of layers, in bounded memory.

    Every neuron is joined to every one of the next layer by the distance of :func:`distances`,
    all in float64; the result equals :func:`merge_tree` of all neurons exactly. Boruvka's
    algorithm (https://en.wikipedia.org/wiki/Bor%C5%AFvka%27s_algorithm) on each neuron's few
    shortest edges: one pass over the weights finds them, and a later one looks again only at
    neurons whose list cannot tell the shortest edge out of their component. Beside the weights of
    two layers it holds ``12 * list_length * n`` bytes and a few more a neuron.

    Args:
        blocks: ``(w_out [F, d], w_in [F, d])`` of each layer from the lowest up, float32 or
            float64 (memory maps are read a layer at a time): a sequence, or a function that
            returns a fresh iterable for each pass. F may differ between layers.
        n_strongest: connections to list for each two adjacent layers, 0 or more.
        list_length: edges to remember of each neuron, at least 1; changes nothing but the time.
        n_threads: threads over the columns of a block, at least 1; changes nothing but the time.

    Raises:
        TypeError: an iterator, which can be read once only; weights of another dtype.
        ValueError: wrong shape or value; the message names the argument and the layer.
    """
    n_threads = as_threads(n_threads)
    forest = _native.ModelForest(list_length, n_strongest)
    widths: list[int] = []
    complete, n_passes = False, 0
    while not complete:
        _scan_all(forest, blocks, widths, n_threads)
        complete = forest.contract()
        n_passes += 1
    edges, tree = forest.tree()
    pairs = _layer_pairs(forest, widths)
    n = sum(widths)
    return ModelTree(MergeTree(n, *tree), edges, tuple(widths), pairs, n_passes, forest.n_dots)


def _scan_all(forest: Any, blocks: Blocks, widths: list[int], n_threads: int) -> None:
    """One pass; the first also learns the widths."""
    first_pass = not widths
    w_out: ArrayLike | None = None
    layer = -1
    for layer, (next_w_out, w_in) in enumerate(_one_pass(blocks)):
        if first_pass:
            if np.ndim(w_in) != 2:
                raise ValueError(
                    f"w_in of layer {layer} must be [F, d]; got {list(np.shape(w_in))}"
                )
            widths.append(np.shape(w_in)[0])
            forest.add_layer(widths[-1])
        elif layer >= len(widths):
            break
        if np.shape(next_w_out)[:1] != (widths[layer],):
            raise ValueError(
                f"w_out of layer {layer} must be [{widths[layer]}, d], as in w_in and in each "
                f"pass; got {list(np.shape(next_w_out))}"
            )
        if w_out is not None and forest.needs(layer - 1):
            try:
                forest.scan(layer - 1, *as_weights(w_out, w_in), n_threads)
            except (TypeError, ValueError) as error:
                where = f"w_out of layer {layer - 1} and w_in of layer {layer}"
                raise type(error)(f"{where}: {error}") from error
        w_out = next_w_out
    if layer + 1 != len(widths):
        raise ValueError(f"blocks must be {len(widths)} layers in each pass; got another number")


def _one_pass(blocks: Blocks) -> Iterator[Block]:
    if callable(blocks):
        blocks = blocks()  # type: ignore[assignment]
    elif not hasattr(blocks, "__len__"):
        raise TypeError(
            f"blocks must be a sequence or a function that returns an iterable, since they may be "
            f"read several times; got {type(blocks).__name__}"
        )
    yield from blocks  # type: ignore[misc]


def _layer_pairs(forest: Any, widths: list[int]) -> tuple[LayerPair, ...]:
    pairs = []
    firsts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int32)
    for lower, (ends, weights, total) in enumerate(forest.pairs()):
        count = widths[lower] * widths[lower + 1]
        mean = total / count if count else 0.0
        pairs.append(LayerPair(lower, ends - firsts[lower : lower + 2], weights, mean))
    return tuple(pairs)
