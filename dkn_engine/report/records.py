"""Results as plain data for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

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


# Arrays that are in the tables alone.
_LEFT_OUT = ("scores", "borderline", "subset_probabilities", "subset_masks", "rest_suppressed")


def fact_record(result: FactResult) -> dict[str, Any]:
    """One fact for JSON: figures, components and DKN; scores and subsets stay in the tables."""
    delta = result.convergence_delta[np.isfinite(result.convergence_delta)]
    summaries: dict[str, dict[str, Any]] = {
        "neurons": {"n_neurons": len(result.neurons)},
        "dkn": {"dkn": result.dkn, "is_degenerate": result.is_degenerate},
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
    return {name: plain(value) for name, value in record.items()}
