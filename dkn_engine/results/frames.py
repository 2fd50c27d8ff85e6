"""Results as tidy tables: a row a fact, neuron, component or subset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UserError
from dkn_engine.neurons import encode
from dkn_engine.showing.tables import data_frame
from dkn_engine.types import CONTROLS, FactResult

if TYPE_CHECKING:
    import pandas as pd

_OF_FACT = ("fact_id", "prompt", "answer", "relation", "status", "reason", "probability", "rank")
_DROPS = ("partial_drop", "full_drop", "redundancy", "excess")
_OF_COMPONENT = ("birth", "death", "persistence", "probability_alone", "drop_if_suppressed")
COLUMNS = {
    "facts": (
        *_OF_FACT,
        *("n_neurons", "n_components", "is_degenerate", "dkn", *_DROPS),
        *(f"{control}_{name}" for control in CONTROLS for name in _DROPS),
    ),
    "neurons": ("fact_id", "layer", "index", "score", "component", "in_dkn"),
    "components": ("fact_id", "component", "in_dkn", "n_neurons", "neurons", *_OF_COMPONENT),
    "subsets": ("fact_id", "suppressed", "probability", "drop", "objective"),
}


def frame(results: Iterable[FactResult], table: str) -> pd.DataFrame:
    """A table of :data:`COLUMNS` as a DataFrame, whose columns are there without rows, too.

    Raises:
        UserError: no such table, or pandas is not installed.
    """
    if table not in COLUMNS:
        raise UserError(f"table must be one of {', '.join(COLUMNS)}; got {table!r}")
    rows = [row for result in results for row in _ROWS[table](result)]
    found = data_frame(rows, COLUMNS[table])
    return found.astype({"component": "Int64"}) if table == "neurons" else found


def components_of(result: FactResult) -> list[int | None]:
    """The component of each located neuron; None for one that is in none."""
    of = {code: i for i, c in enumerate(result.components) for code in encode(c.neurons).tolist()}
    return [of.get(code) for code in encode(result.neurons).tolist()]


def _fact(r: FactResult) -> Iterator[tuple[Any, ...]]:
    own = (getattr(r, name) for name in _OF_FACT)
    sizes = (len(r.neurons), len(r.components), r.is_degenerate, r.dkn)
    drops = (getattr(r, name) for name in _DROPS)
    controls = (
        getattr(r.controls.get(control), name, math.nan) for control in CONTROLS for name in _DROPS
    )
    yield (*own, *sizes, *drops, *controls)


def _neurons(r: FactResult) -> Iterator[tuple[Any, ...]]:
    for neuron, score, own in zip(
        r.neurons.tolist(), r.scores.tolist(), components_of(r), strict=True
    ):
        yield (r.fact_id, *neuron, score, own, own in r.dkn)


def _components(r: FactResult) -> Iterator[tuple[Any, ...]]:
    for i, c in enumerate(r.components):
        neurons = [tuple(neuron) for neuron in c.neurons.tolist()]
        figures = (getattr(c, name) for name in _OF_COMPONENT)
        yield (r.fact_id, i, i in r.dkn, len(neurons), neurons, *figures)


def _subsets(r: FactResult) -> Iterator[tuple[Any, ...]]:
    p = dict(zip(r.subset_masks.tolist(), r.subset_probabilities.tolist(), strict=True))
    objective = dict(zip(p, r.subset_objective.tolist(), strict=False))  # of none or of all
    clean = p.get(0, math.nan)
    for mask, probability in p.items():
        members = tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
        drop = 1 - probability / clean if clean else math.nan
        yield r.fact_id, members, probability, drop, objective.get(mask, math.nan)


_ROWS: dict[str, Callable[[FactResult], Iterator[tuple[Any, ...]]]] = {
    "facts": _fact,
    "neurons": _neurons,
    "components": _components,
    "subsets": _subsets,
}
