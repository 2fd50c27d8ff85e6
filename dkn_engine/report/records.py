"""Results as plain data for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dkn_engine.store.schema import LATER_COUNTS
from dkn_engine.types import FactResult


def plain(value: Any) -> Any:
    """Dataclasses, arrays and tuples as dicts and lists; numbers that are not finite as None.

    JSON has no NaN, and a reader that meets one usually stops.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def fact_record(result: FactResult) -> dict[str, Any]:
    """One fact for JSON: figures, components and DKN; scores and subsets stay in the tables."""
    delta = result.convergence_delta[np.isfinite(result.convergence_delta)]
    record: dict[str, Any] = plain(
        {
            **{
                name: getattr(result, name)
                for name in ("fact_id", "status", "reason", "prompt", "answer", "relation")
            },
            "probability": result.probability,
            "rank": result.rank,
            "n_neurons": len(result.neurons),
            "components": result.components,
            "dkn": result.dkn,
            "is_degenerate": result.is_degenerate,
            "partial_drop": result.partial_drop,
            "full_drop": result.full_drop,
            "redundancy": result.redundancy,
            "excess": result.excess,
            "candidates": result.candidates,
            "controls": result.controls,
            **{name: getattr(result, name) for name in LATER_COUNTS},
            "max_abs_convergence_delta": np.abs(delta).max() if delta.size else None,
            "n_points": result.n_points.sum(),
            "converged": result.converged,
            "path": result.path,
        }
    )
    return record
