"""What other tools keep of a fact: its neurons, its clusters, and which of those are degenerate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError
from dkn_engine.types import FactResult

# Neurons beyond these would not fit the int32 columns of a run directory.
MOST = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class FactNeurons:
    """A fact's neurons as files of other tools hold them.

    Attributes:
        fact_id: the fact's id (uuid).
        neurons: int32 ``[n, 2]``, columns layer and index, in the file's order.
        clusters: int32 ``[k, 2]`` each, the candidates; empty where a form has none.
        dkn: indices into ``clusters`` of those that the filter kept.
        site: where the neurons were located, ``pre`` or ``post`` as in
            :class:`dkn_engine.AttributionConfig`; None where a form does not say.
    """

    fact_id: str
    neurons: NDArray[np.int32]
    clusters: tuple[NDArray[np.int32], ...] = ()
    dkn: tuple[int, ...] = ()
    site: str | None = None


def fact_neurons(facts: Iterable[FactResult | FactNeurons]) -> list[FactNeurons]:
    """Results reduced to their neurons and components; ids must be unique.

    Raises:
        UserError: two facts have the same id; a file by id would lose one.
    """
    found: dict[str, FactNeurons] = {}
    for fact in facts:
        if fact.fact_id in found:
            raise UserError(f"fact ids must be unique; got {fact.fact_id!r} twice")
        if isinstance(fact, FactResult):
            clusters = tuple(component.neurons for component in fact.components)
            fact = FactNeurons(fact.fact_id, fact.neurons, clusters, fact.dkn)
        found[fact.fact_id] = fact
    return list(found.values())


def parse_pairs(value: object, where: str) -> NDArray[np.int32]:
    """Neurons ``[n, 2]`` out of JSON.

    Raises:
        UserError: it is no list of pairs of numbers; begins with ``where``, the file and fact.
    """
    if not isinstance(value, list):
        raise UserError(
            f"{where} must be a list of [layer, index] pairs; got {type(value).__name__}"
        )
    for pair in value:
        if not _is_pair(pair):
            raise UserError(
                f"{where} must hold [layer, index] pairs of integers from 0; got {short(pair)}"
            )
    return np.array(value, dtype=np.int32).reshape(-1, 2)


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= MOST for i in pair)
    )


def short(value: object) -> str:
    """The value for a message: on one line, and not endless."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def same_set(a: NDArray[np.int32], b: NDArray[np.int32]) -> bool:
    """Whether two clusters hold the same neurons, in whatever order."""
    return sorted(a.tolist()) == sorted(b.tolist())
