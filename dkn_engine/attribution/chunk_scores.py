"""What attribution gives of one chunk of answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ChunkScores:
    """Attribution of B sequences; see ``Attribution`` for the fields, with B for n_facts.

    ``path`` is ``general`` where some of the sequences took it. ``row_layers`` is how many
    (row, layer) pairs the sweep pushed through the decoder.
    """

    scores: NDArray[np.floating]
    convergence_delta: NDArray[np.float32]
    probability: NDArray[np.float64]
    n_points: NDArray[np.int32]
    converged: NDArray[np.bool_]
    error: NDArray[np.float32]
    path: str
    row_layers: int
