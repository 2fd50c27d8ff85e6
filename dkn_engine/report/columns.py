"""The figures of results as columns of numbers: all that a summary needs, in little memory."""

from __future__ import annotations

import math
from array import array
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dkn_engine.store.schema import LATER_COUNTS
from dkn_engine.types import CONTROLS, Drops, FactResult, Status

STATUSES: tuple[str, ...] = get_args(Status)
DROPS = ("partial_drop", "full_drop", "redundancy", "excess")
CONTROL_WORDS = {
    "random": "random neurons",
    "paraphrases": "held-out paraphrases",
    "unrelated": "unrelated facts",
    "mean_ablation": "mean, not zero",
}


def own_drops(result: FactResult) -> Drops:
    """The drops of a fact's DKN, or of all its candidates if it has none."""
    return Drops(
        result.partial_drop,
        result.full_drop,
        result.redundancy,
        excess=result.excess,
        objective=_own_objective(result),
    )


def _own_objective(result: FactResult) -> tuple[float, ...]:
    """Attribution's objective as in :class:`Drops`, where the lattice has it."""
    if not len(result.subset_objective):
        return ()
    at = dict(zip(result.subset_masks.tolist(), result.subset_objective.tolist(), strict=True))
    family = result.dkn if result.is_degenerate else range(len(result.components))
    alone = [1 << i for i in family]
    return tuple(at.get(mask, math.nan) for mask in (0, *alone, sum(alone)))


class Columns:
    """Figures of results, added one by one; a few hundred bytes a result.

    Attributes:
        relations: names by number, in the order in which they came.
        paths: the same of attribution paths; ``nulls``: of what nulls draw.
    """

    def __init__(self) -> None:
        self.relations: dict[str, int] = {}
        self.paths: dict[str, int] = {}
        self.nulls: dict[str, int] = {}
        self._values = array("d")

    def add(self, result: FactResult) -> None:
        """Append the figures of a result."""
        self._values.extend(self._row(result).values())

    def freeze(self) -> dict[str, NDArray[np.float64]]:
        """Every column as float64 ``[n]``, by name."""
        names = list(Columns()._row(FactResult("", "skipped")))
        table = np.frombuffer(self._values, dtype=np.float64).reshape(-1, len(names))
        return {name: table[:, i] for i, name in enumerate(names)}

    def _row(self, result: FactResult) -> dict[str, float]:
        paraphrases = result.controls.get("paraphrases")
        delta = np.abs(result.convergence_delta[np.isfinite(result.convergence_delta)])
        row = {
            "status": STATUSES.index(result.status),
            "relation": self.relations.setdefault(result.relation or "", len(self.relations)),
            "n_neurons": len(result.neurons),
            "n_components": len(result.components),
            "is_degenerate": result.is_degenerate,
            "family_size": len(result.dkn if result.is_degenerate else result.components),
            "n_paraphrases": 0 if paraphrases is None else paraphrases.n,
            "attributed": len(result.n_points) > 0,
            "path": self.paths.setdefault(result.path, len(self.paths)),
            "converged": result.converged,
            "delta_sum": delta.sum(dtype=np.float64),
            "delta_max": delta.max() if delta.size else math.nan,
            "n_deltas": delta.size,
            "points_sum": result.n_points.sum(),
            "n_layers": len(result.n_points),
            "holds": math.nan if result.holds is None else result.holds,
            "null_p": result.null_p,
        }
        if result.null is not None:
            self.nulls.setdefault(result.null, len(self.nulls))
        for name in LATER_COUNTS:
            count = getattr(result, name)
            row[name] = math.nan if count is None else count
        # "own": of the DKN, or of all candidates where there is none.
        groups = {"own": own_drops(result), "candidates": result.candidates}
        for group, drops in (groups | {c: result.controls.get(c) for c in CONTROLS}).items():
            row[f"{group}.there"] = drops is not None
            for name in DROPS:
                row[f"{group}.{name}"] = math.nan if drops is None else getattr(drops, name)
        return row
