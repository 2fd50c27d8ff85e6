"""The figures of results as columns of numbers: all that a summary needs, in little memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dkn_engine.store.schema import LATER_COUNTS
from dkn_engine.types import CONTROLS, Drops, FactResult, Status

STATUSES: tuple[str, ...] = get_args(Status)
DROPS = ("partial_drop", "full_drop", "redundancy", "excess")
# "own": of the DKN, or of all candidates where there is none.
GROUPS = ("own", "candidates", *CONTROLS)
CONTROL_WORDS = {
    "random": "random neurons",
    "paraphrases": "held-out paraphrases",
    "unrelated": "unrelated facts",
    "mean_ablation": "mean, not zero",
}
_COLUMNS = (
    "status",
    "relation",
    "n_neurons",
    "n_components",
    "is_degenerate",
    "family_size",
    "n_paraphrases",
    *LATER_COUNTS,
    *(f"{group}.{figure}" for group in GROUPS for figure in ("there", *DROPS)),
    "attributed",
    "path",
    "converged",
    "delta_sum",
    "delta_max",
    "n_deltas",
    "points_sum",
    "n_layers",
)


def own_drops(result: FactResult) -> Drops:
    """The drops of a fact's DKN, or of all its candidates if it has none."""
    return Drops(result.partial_drop, result.full_drop, result.redundancy, excess=result.excess)


class Columns:
    """Figures of results, added one by one; a few hundred bytes a result.

    Attributes:
        relations: names by number, in the order in which they came.
        paths: the same of attribution paths.
    """

    def __init__(self) -> None:
        self.relations: dict[str, int] = {}
        self.paths: dict[str, int] = {}
        self._values = array("d")

    def add(self, result: FactResult) -> None:
        """Append the figures of a result."""
        self._values.extend(self._row(result))

    def freeze(self) -> dict[str, NDArray[np.float64]]:
        """Every column as float64 ``[n]``, by name."""
        table = np.frombuffer(self._values, dtype=np.float64).reshape(-1, len(_COLUMNS))
        return {name: table[:, i] for i, name in enumerate(_COLUMNS)}

    def _row(self, result: FactResult) -> Iterator[float]:
        relation = result.relation or ""
        yield STATUSES.index(result.status)
        yield self.relations.setdefault(relation, len(self.relations))
        yield len(result.neurons)
        yield len(result.components)
        yield result.is_degenerate
        yield len(result.dkn if result.is_degenerate else result.components)
        paraphrases = result.controls.get("paraphrases")
        yield 0 if paraphrases is None else paraphrases.n
        for name in LATER_COUNTS:
            count = getattr(result, name)
            yield math.nan if count is None else count
        own = own_drops(result)
        for drops in (own, result.candidates, *map(result.controls.get, CONTROLS)):
            yield drops is not None
            yield from (math.nan if drops is None else getattr(drops, name) for name in DROPS)
        delta = np.abs(result.convergence_delta[np.isfinite(result.convergence_delta)])
        yield len(result.n_points) > 0
        yield self.paths.setdefault(result.path, len(self.paths))
        yield result.converged
        yield delta.sum(dtype=np.float64)
        yield delta.max() if delta.size else math.nan
        yield delta.size
        yield result.n_points.sum()
        yield len(result.n_points)
