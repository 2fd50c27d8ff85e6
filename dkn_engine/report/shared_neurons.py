"""Which knowledge neurons several facts have."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from dkn_engine.report.content import Column, Table, number
from dkn_engine.types import FactResult

_NAMED = 6  # facts of a neuron


def shared_neurons(results: Sequence[FactResult], most: int = 12) -> Table | None:
    """The knowledge neurons of the most facts; None if no two facts have one in common.

    Args:
        results: of all facts.
        most: rows.
    """
    owners: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    in_dkn: Counter[tuple[int, int]] = Counter()
    for result in results:
        for layer, index in result.neurons.tolist():
            owners[layer, index].append(result.fact_id)
        members = (result.components[i].neurons.tolist() for i in result.dkn)
        in_dkn.update({(layer, index) for neurons in members for layer, index in neurons})
    several = [neuron for neuron, facts in owners.items() if len(facts) > 1]
    first = sorted(several, key=lambda neuron: (-len(owners[neuron]), neuron))[:most]
    if not first:
        return None
    rows = [
        (f"L{neuron[0]}:{neuron[1]}", len(owners[neuron]), in_dkn[neuron], _named(owners[neuron]))
        for neuron in first
    ]
    columns = ("neuron", number("facts"), number("in their DKN"), Column("among them"))
    caption = (
        f"The {len(rows):,} of {len(owners):,} knowledge neurons, layer:index, that most facts "
        f"have; {len(several):,} are those of two or more. Results.neurons() in Python has all."
    )
    return Table(columns, rows, caption)


def _named(facts: Sequence[str]) -> str:
    more = len(facts) - _NAMED
    return ", ".join(facts[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
