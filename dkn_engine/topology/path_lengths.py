"""Which neurons a distance goes through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dkn_engine import _native
from dkn_engine.neurons import as_neurons
from dkn_engine.topology.arrays import as_span, as_weights


@dataclass(frozen=True, slots=True, eq=False)
class ShortestPaths:
    """Shortest paths between all located neurons.

    Attributes:
        distances: float64 ``[n, n]``, as :func:`distances` returns them.
        previous: int32 ``[n, n]``; for a finite distance from ``a`` to ``b`` in a higher layer the
            neuron just before ``b`` on the path, ``a`` itself if their layers are adjacent; -1
            elsewhere, so also from a higher layer to a lower one.
    """

    distances: NDArray[np.float64]
    previous: NDArray[np.int32]

    def path(self, a: int, b: int) -> NDArray[np.int64]:
        """Positions of the neurons from ``a`` to ``b``, both included, int64 1-D.

        One neuron a layer; their distances, added from the lowest layer upwards, sum up to
        ``distances[a, b]`` exactly. Empty if the distance is infinite; ``[a]`` if ``b`` is ``a``.

        Raises:
            IndexError: not positions of neurons.
        """
        n = len(self.distances)
        if not (0 <= a < n and 0 <= b < n):
            raise IndexError(f"a and b must be from 0 to {n - 1}; got {a} and {b}")
        if not np.isfinite(self.distances[a, b]):
            return np.empty(0, dtype=np.int64)
        low, high = (a, b) if self.previous[a, b] >= 0 else (b, a)
        steps = [high]
        while steps[-1] != low:
            steps.append(int(self.previous[low, steps[-1]]))
        return np.array(steps if high == a else steps[::-1], dtype=np.int64)


def shortest_paths(
    neurons: ArrayLike, w_out: ArrayLike, w_in: ArrayLike, max_span: int | None = None
) -> ShortestPaths:
    """:func:`distances` and which neurons each of them goes through.

    Of several paths of one length the one whose last neuron before the upper end comes first in
    ``neurons`` is taken, then the one before it, and so on downwards. 4 n^2 bytes more than the
    distances. Arguments and errors as in :func:`distances`.
    """
    limit = as_span(max_span)
    arrays = _native.layer_paths(as_neurons(neurons), *as_weights(w_out, w_in), limit)
    return ShortestPaths(*arrays)
