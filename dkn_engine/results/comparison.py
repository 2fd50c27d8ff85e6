"""Two runs of the same facts beside one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError
from dkn_engine.neurons import encode
from dkn_engine.showing import shown
from dkn_engine.showing.tables import data_frame
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    import pandas as pd

Which = Literal["both", "first", "second", "none"]
_WHICH: dict[tuple[bool, bool], Which] = {
    (True, True): "both",
    (True, False): "first",
    (False, True): "second",
    (False, False): "none",
}
_FIGURES = ("probability", "partial_drop", "full_drop", "redundancy", "excess")


@dataclass(frozen=True, slots=True, eq=False)
class RunComparison:
    """What differs between two runs, fact by fact; arrays in the order of ``fact_ids``.

    Attributes:
        fact_ids: facts that the model knows in both runs, in the order of the first.
        dkn: in which run each has a DKN: ``both``, ``first``, ``second`` or ``none``.
        jaccard: float64 ``[n]``, located neurons of both over those of either; NaN if there are
            none. Of two models it says nothing: index i is another neuron in each.
        changes: float64 ``[n]`` by figure, the second run's minus the first's: probability,
            n_neurons, n_components, and the drops, redundancy and excess, which are of the DKN in a
            run that has one and of all candidates in one that has none.
        not_known: other facts of both runs, in the order of the first.
        only_first, only_second: facts that one run alone holds.
    """

    fact_ids: tuple[str, ...]
    dkn: tuple[Which, ...]
    jaccard: NDArray[np.float64]
    changes: Mapping[str, NDArray[np.float64]]
    not_known: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def counts(self) -> dict[Which, int]:
        """How many facts have a DKN in both runs, in one of them, in none."""
        return {which: self.dkn.count(which) for which in _WHICH.values()}

    def to_pandas(self) -> pd.DataFrame:
        """A row a fact known in both runs: fact_id, dkn, jaccard and the changes.

        Raises:
            UserError: pandas is not installed.
        """
        columns = (self.fact_ids, self.dkn, self.jaccard.tolist())
        changes = (values.tolist() for values in self.changes.values())
        names = ("fact_id", "dkn", "jaccard", *(f"change_of_{name}" for name in self.changes))
        return data_frame(list(zip(*columns, *changes, strict=True)), names)

    def __repr__(self) -> str:
        said = ", ".join(f"{n:,} in {which}" for which, n in self.counts().items())
        return f"<RunComparison: {len(self.fact_ids):,} facts known in both runs; DKN: {said}>"

    def _repr_html_(self) -> str:
        return str(shown("comparison_html", self))


def compare(a: Iterable[FactResult], b: Iterable[FactResult]) -> RunComparison:
    """Two runs beside one another, facts by their ids.

    Args:
        a, b: results of the first and the second run, such as of :func:`dkn_engine.load_results`.

    Raises:
        UserError: a run holds a fact twice.
    """
    first, second = _by_id("a", a), _by_id("b", b)
    shared = [fact_id for fact_id in first if fact_id in second]
    known = [i for i in shared if first[i].status == second[i].status == "ok"]
    pairs = [(first[i], second[i]) for i in known]
    sizes = [
        ("n_neurons", [len(y.neurons) - len(x.neurons) for x, y in pairs]),
        ("n_components", [len(y.components) - len(x.components) for x, y in pairs]),
    ]
    figures = [(f, [getattr(y, f) - getattr(x, f) for x, y in pairs]) for f in _FIGURES]
    there = set(known)
    return RunComparison(
        fact_ids=tuple(known),
        dkn=tuple(_WHICH[x.is_degenerate, y.is_degenerate] for x, y in pairs),
        jaccard=np.array([_jaccard(x, y) for x, y in pairs], dtype=np.float64),
        changes={name: np.array(v, dtype=np.float64) for name, v in (*sizes, *figures)},
        not_known=tuple(i for i in shared if i not in there),
        only_first=tuple(i for i in first if i not in second),
        only_second=tuple(i for i in second if i not in first),
    )


def _by_id(name: str, results: Iterable[FactResult]) -> dict[str, FactResult]:
    found: dict[str, FactResult] = {}
    for result in results:
        if result.fact_id in found:
            raise UserError(f"{name} must hold each fact once; got {result.fact_id!r} twice")
        found[result.fact_id] = result
    return found


def _jaccard(x: FactResult, y: FactResult) -> float:
    one, other = encode(x.neurons), encode(y.neurons)
    either = len(np.union1d(one, other))
    return len(np.intersect1d(one, other)) / either if either else float("nan")
