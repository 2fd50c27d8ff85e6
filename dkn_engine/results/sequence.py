"""The results of a run: a sequence that finds, shows and tabulates them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from dkn_engine.results.frames import frame
from dkn_engine.showing import shown
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    import pandas as pd

Frame = Literal["facts", "neurons", "components", "subsets"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Results(Sequence[FactResult]):
    """The results of some facts, in their order; it cannot be changed, and a notebook shows it.

    It is indexed, sliced, iterated over and compared as a list of them is; ``results["france"]`` is
    the result of the fact with that id.

    Args:
        results: of facts, in their order.
    """

    _results: tuple[FactResult, ...]

    def __init__(self, results: Iterable[FactResult] = ()) -> None:
        object.__setattr__(self, "_results", tuple(results))

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, key: int | str) -> FactResult: ...
    @overload
    def __getitem__(self, key: slice) -> Results: ...
    def __getitem__(self, key: int | str | slice) -> FactResult | Results:
        """A result by its place or its fact's id, or some of them by a slice.

        Raises:
            IndexError, KeyError: there is none.
        """
        if isinstance(key, slice):
            return Results(self._results[key])
        if isinstance(key, str):
            for result in self._results:
                if result.fact_id == key:
                    return result
            raise KeyError(f"no fact has the id {key!r}")
        return self._results[key]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Results | list | tuple):
            return NotImplemented
        return self._results == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # As that of a list, to which it may be equal.

    def __add__(self, other: Iterable[FactResult]) -> Results:
        """These results, then the others."""
        return Results((*self._results, *other))

    def __repr__(self) -> str:
        known = [r for r in self._results if r.status == "ok"]
        n, n_dkns = len(self._results), sum(r.is_degenerate for r in known)
        facts = "fact" if n == 1 else "facts"
        return f"<Results: {n:,} {facts}, {len(known):,} of them known, {n_dkns:,} with a DKN>"

    def _repr_html_(self) -> str:
        return str(shown("results_html", self))

    def to_pandas(self, table: Frame = "facts") -> pd.DataFrame:
        """One table of all results.

        Args:
            table: ``facts``, a row a fact with its figures and those of its controls; ``neurons``,
                a row a located neuron with its score, its component (from 0, empty if in none) and
                whether it is in the DKN; ``components``, a row a candidate; ``subsets``, a row a
                subset of candidates that was suppressed, with the probability that it leaves.

        Raises:
            UserError: no such table, or pandas is not installed.
        """
        return frame(self, table)

    def summary(self) -> Any:
        """The headline figures with intervals and controls: :class:`dkn_engine.report.Summary`."""
        return shown("summary_of", self)

    def report(self, path: str | Path) -> Path:
        """Write the page of these results, one file that needs no other; returns its path.

        Figures are in it if matplotlib is installed. It names no model: for that,
        ``dkn-engine report`` takes a run directory.

        Args:
            path: of the file, such as ``report.html``; its folder is made if absent.

        Raises:
            OSError: it cannot be written.
        """
        written: Path = shown("write_report", self, path)
        return written

    def neurons(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """The ids of the facts that each located neuron, (layer, index), is a knowledge neuron of.

        Neurons of the most facts come first, those of as many by layer and index.
        """
        found: dict[tuple[int, int], list[str]] = {}
        for result in self._results:
            for layer, index in result.neurons.tolist():
                found.setdefault((layer, index), []).append(result.fact_id)
        order = sorted(found, key=lambda neuron: (-len(found[neuron]), neuron))
        return {neuron: tuple(found[neuron]) for neuron in order}

    def __reduce__(self) -> Any:
        return Results, (self._results,)
