"""A fact's result as plain data for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dkn_engine.files.plain_json import plain
from dkn_engine.report.columns import own_drops
from dkn_engine.types import FactResult

# Arrays that are in the tables alone.
_LEFT_OUT = (
    *("scores", "borderline", "connection_weights"),
    *("subset_probabilities", "subset_masks", "subset_objective", "rest_suppressed"),
    "pair_interactions",
)


def fact_record(result: FactResult) -> dict[str, Any]:
    """One fact for JSON: figures, components and DKN; scores and subsets stay in the tables.

    Where attribution's objective is not the probability it has ``objective``: of the DKN (of all
    candidates if there is none), as every control does, as in :class:`dkn_engine.types.Drops`.
    """
    delta = result.convergence_delta[np.isfinite(result.convergence_delta)]
    summaries: dict[str, dict[str, Any]] = {
        "neurons": {"n_neurons": len(result.neurons)},
        "dkn": {"dkn": result.dkn, "is_degenerate": result.is_degenerate, "holds": result.holds},
        "convergence_delta": {
            "max_abs_convergence_delta": np.abs(delta).max() if delta.size else None
        },
        "n_points": {"n_points": result.n_points.sum()},
        **{name: {} for name in _LEFT_OUT},
    }
    record: dict[str, Any] = {}
    for field in dataclasses.fields(result):
        name = field.name
        record |= summaries[name] if name in summaries else {name: getattr(result, name)}
    data = {name: plain(value) for name, value in record.items()}
    for drops in (data["candidates"] or {}, *data["controls"].values()):
        if not drops.get("objective"):
            drops.pop("objective", None)
    own = own_drops(result).objective
    return data | {"objective": plain(own)} if own else data
