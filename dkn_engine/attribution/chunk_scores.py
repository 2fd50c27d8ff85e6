"""What attribution gives of one chunk of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dkn_engine.types import Path


@dataclass(frozen=True, eq=False)
class ChunkScores:
    """Attribution of B sequences; see ``Attribution`` for the fields, with B for n_facts.

    ``path`` is the slowest that some of the sequences took. ``row_layers`` is how many
    (row, layer) pairs the sweep pushed through the decoder.
    """

    scores: NDArray[np.floating]
    convergence_delta: NDArray[np.float32]
    probability: NDArray[np.float64]
    n_points: NDArray[np.int32]
    converged: NDArray[np.bool_]
    error: NDArray[np.float32]
    path: Path
    row_layers: int


def slowest(*paths: Path) -> Path:
    """Of several paths the one that costs most."""
    return max(paths, key=get_args(Path).index)
