"""What attribution gives of one chunk of answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dkn_engine.types import Path


@dataclass(frozen=True, eq=False)
class ChunkScores:
    """Attribution of B sequences; see ``Attribution`` for the fields, with B for n_facts.

    ``paths`` are those of each sequence, and ``path`` is the slowest of them. ``row_layers`` is how
    many (row, layer) pairs the sweep pushed through the decoder.
    """

    scores: NDArray[np.floating]
    convergence_delta: NDArray[np.float32]
    probability: NDArray[np.float64]
    n_points: NDArray[np.int32]
    converged: NDArray[np.bool_]
    error: NDArray[np.float32]
    paths: NDArray[np.str_]
    row_layers: int

    @property
    def path(self) -> Path:
        return slowest(self.paths)

    def take(self, index: NDArray[np.int64]) -> ChunkScores:
        """Some of the sequences, in this order; what tells of all of them stays."""
        return dataclasses.replace(
            self, **{name: getattr(self, name)[index] for name in _of_sequences()}
        )


def _of_sequences() -> list[str]:
    """The fields that have an entry a sequence."""
    names = (f.name for f in dataclasses.fields(ChunkScores))
    return [name for name in names if name != "row_layers"]


def joined(parts: Sequence[ChunkScores]) -> ChunkScores:
    """Scores of several batches as those of one."""
    fields: dict[str, Any] = {
        name: np.concatenate([getattr(scores, name) for scores in parts])
        for name in _of_sequences()
    }
    return ChunkScores(**fields, row_layers=sum(scores.row_layers for scores in parts))


def summed(
    table: NDArray[Any], groups: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[Any]:
    """Weighted sums ``[B, ...]`` over the rows ``[N, ...]`` of each group, in the table's dtype.

    What is not a number stays in its group, as it would not in a product with a matrix of weights.
    """
    found = np.zeros((int(groups.max()) + 1, *table.shape[1:]), dtype=table.dtype)
    for row, group, weight in zip(table, groups.tolist(), weights.tolist(), strict=True):
        found[group] += weight * row
    return found


def slowest(paths: NDArray[np.str_]) -> Path:
    """Of several paths the one that costs most."""
    order: tuple[Path, ...] = get_args(Path)
    return max((order[order.index(p)] for p in paths.tolist()), key=order.index)
