"""The sets of neurons that analyses set side by side: D, N and Rnd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError
from dkn_engine.neurons import random_sets, sort_neurons, union
from dkn_engine.seeds import generator
from dkn_engine.types import Fact, FactResult


@dataclass(frozen=True, eq=False)
class NeuronGroups:
    """A known fact and its sets of neurons, int32 ``[n, 2]`` (layer, index).

    Attributes:
        fact, result: of the run.
        d: neurons of the DKN's components, sorted; empty if the fact has none.
        n: all its knowledge neurons, sorted.
        rnd: draws of random neurons that are not among ``n``, as many as ``d`` in each layer.
    """

    fact: Fact
    result: FactResult
    d: NDArray[np.int32]
    n: NDArray[np.int32]
    rnd: tuple[NDArray[np.int32], ...]

    @property
    def has_dkn(self) -> bool:
        return len(self.d) > 0


def neuron_groups(
    facts: Sequence[Fact],
    results: Sequence[FactResult],
    widths: int | Sequence[int],
    *,
    n_random: int,
    seed: int,
) -> list[NeuronGroups]:
    """Groups of every fact that the model knows (status ``ok``), in the order of the facts.

    Args:
        facts: of the run.
        results: of :func:`dkn_engine.find_dkns` on them, in the same order.
        widths: neurons of each layer, or of all.
        n_random: draws of ``rnd``; none for a fact without a DKN.
        seed: of the draws, which depend on it and the fact's id alone.

    Raises:
        UserError: facts and results do not belong together.
    """
    require_results_of(facts, results)
    groups = []
    for fact, result in zip(facts, results, strict=True):
        if result.status != "ok":
            continue
        d, rng = dkn_neurons(result), generator(seed, "groups", fact.id)
        draws = range(n_random) if len(d) else ()
        rnd = tuple(sort_neurons(random_sets([d], result.neurons, widths, rng)[0]) for _ in draws)
        groups.append(NeuronGroups(fact, result, d, sort_neurons(result.neurons), rnd))
    return groups


def require_results_of(facts: Sequence[Fact], results: Sequence[FactResult]) -> None:
    """Refuse results that are not those of the facts, in their order.

    Raises:
        UserError: the first place where they differ.
    """
    ids, found = [f.id for f in facts], [r.fact_id for r in results]
    if ids != found:
        apart = ((a, b) for a, b in zip(ids, found, strict=False) if a != b)
        first = next((f", {b!r} where {a!r} is expected" for a, b in apart), "")
        raise UserError(
            f"results must be those of the facts, in their order; got {len(found)} results "
            f"for {len(ids)} facts{first}"
        )


def dkn_neurons(result: FactResult) -> NDArray[np.int32]:
    """Neurons of the DKN's components, int32 ``[n, 2]``, sorted; empty without a DKN."""
    return union([result.components[i].neurons for i in result.dkn])


def with_dkn(groups: Sequence[NeuronGroups]) -> Iterator[NeuronGroups]:
    """Those whose facts have a DKN, over which D, N and Rnd are compared."""
    return (g for g in groups if g.has_dkn)
