"""Sharing: how many of a component's neurons belong to other facts too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.config import SharingConfig
from dkn_engine.analysis.neuron_groups import dkn_neurons, require_results_of
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.models.layout import find_layout
from dkn_engine.neurons import encode, random_sets
from dkn_engine.run.progress import showing
from dkn_engine.seeds import generator
from dkn_engine.statistics.table import COMPARED, Conditions, Sample, Table, tabulate
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# What the neurons of other facts are: all their knowledge neurons, or those of their DKNs.
WITH = ("N", "D")
# Which other facts: of the same relation, of the same relation with another answer, of others.
OTHERS = ("same relation", "same relation, other answer", "other relations")
FEWEST_DRAWS = 20


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a set of neurons overlaps with the neurons of other facts.

    Attributes:
        fact_id: whose set it is.
        component: index among the fact's candidates; None for its knowledge neurons.
        in_dkn: whether the component belongs to the fact's DKN.
        n_neurons: size of the set.
        kind: ``N`` or ``D``; of the other facts' neurons.
        others: one of :data:`OTHERS`.
        n_others: other facts of that kind that have such neurons.
        shared: share of the set's neurons that at least one of them has.
        overlap: share of the set's neurons that one of them has, on average over them.
        random_shared, random_overlap: the same of random neurons, as many in each layer and none
            of the fact's own, on average over draws; NaN for knowledge neurons.
    """

    fact_id: str
    component: int | None
    in_dkn: bool
    n_neurons: int
    kind: str
    others: str
    n_others: int
    shared: float
    overlap: float
    random_shared: float
    random_overlap: float


def sharing(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    results: Sequence[FactResult],
    settings: SharingConfig | None = None,
    *,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **changes: Any,
) -> Table:
    """The share of components' neurons that other facts have; the model is asked for its width.

    Groups: ``D``, the components of the fact's DKN; ``C``, all its candidates; ``N``, all its
    knowledge neurons; ``Rnd``, random sets matched to the components under the condition
    ``matched``. A fact's value is the mean over its components. ``settings`` are the defaults if
    None, ``changes`` are of single ones by their names. See :func:`component_sharing` for the other
    arguments, errors and the figures ``shared`` and ``overlap``.
    """
    n_random = SharingConfig.of(settings, **changes).n_random
    found = component_sharing(
        facts, results, find_layout(model).widths, seed=seed, n_random=n_random, progress=progress
    )
    return tabulate(
        "sharing",
        # Rows of the tested figures come first.
        sorted(_samples(found), key=lambda s: not _is_tested(s.figure, s.conditions)),
        seed=seed,
        compared=(*COMPARED, ("C", "Rnd")),
        tested=_is_tested,
        settings={"n_random": n_random},
        notes=(
            "shared: neurons that at least one other fact has; it grows with the number of other "
            "facts. overlap: neurons that another fact has, on average over other facts.",
            "Random neurons are none of the fact's own, as many in each layer as the components'.",
        ),
    )


def _is_tested(figure: str, conditions: Conditions) -> bool:
    """The rest says much the same in other units, and more tests would only weaken these."""
    others = dict(conditions)["others"]
    return figure == "shared" and others in ("same relation", "other relations")


def component_sharing(
    facts: Facts,
    results: Sequence[FactResult],
    widths: int | Sequence[int],
    *,
    seed: int = 0,
    n_random: int = 20,
    progress: Progress | bool | None = None,
) -> list[Sharing]:
    """Of every known fact, the sharing of each candidate component and of all knowledge neurons.

    Facts without a relation are of no other fact's relation.

    Args:
        facts: of the run.
        results: of :func:`dkn_engine.find_dkns` on them, in the same order.
        widths: neurons of each layer, or of all.
        seed: of the draws, which depend on it and the fact's id alone.
        n_random: draws of random sets, at least 20.
        progress: True shows a bar, or lines in a log; a callable is called with (facts done, known
            facts).

    Raises:
        UserError: results are not those of the facts, or ``n_random`` is too small.
    """
    facts = fact_list(facts)
    require_results_of(facts, results)
    if n_random < FEWEST_DRAWS:
        raise UserError(f"n_random must be at least {FEWEST_DRAWS}; got {n_random}")
    known = [(f, r) for f, r in zip(facts, results, strict=True) if r.status == "ok"]
    owners = {
        "N": _Owners([r.neurons for _, r in known]),
        "D": _Owners([dkn_neurons(r) for _, r in known]),
    }
    found: list[Sharing] = []
    with showing(progress) as tell:
        for i, (_, result) in enumerate(known):
            masks = _others([f for f, _ in known], i)
            rng = generator(seed, "sharing", result.fact_id)
            sets = [c.neurons for c in result.components]
            draws = [random_sets(sets, result.neurons, widths, rng) for _ in range(n_random)]
            for kind in WITH:
                for others, mask in masks.items():
                    found += _of_fact(result, draws, owners[kind], kind, others, mask)
            if tell is not None:
                tell(i + 1, len(known))
    return found


class _Owners:
    """Which facts have a neuron.

    Args:
        sets: int32 ``[n, 2]``, neurons of each fact.
    """

    def __init__(self, sets: Sequence[NDArray[np.int32]]) -> None:
        code = np.concatenate([np.empty(0, np.int64), *(encode(s) for s in sets)])
        fact = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
        order = np.argsort(code, kind="stable")
        self._code, self._fact = code[order], fact[order]
        self.any: NDArray[np.bool_] = np.array([len(s) > 0 for s in sets], dtype=np.bool_)

    def measure(
        self, sets: Sequence[NDArray[np.int32]], facts: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """``shared`` and ``overlap`` of each set with some of the facts, float64 ``[2, n_sets]``.

        NaN for empty sets, and everywhere if none of the facts has neurons.
        """
        n_others = int((facts & self.any).sum())
        sizes = np.array([len(s) for s in sets])
        if not n_others or not len(sets):
            return np.full((2, len(sets)), np.nan)
        codes = np.concatenate([encode(s) for s in sets])
        before = np.concatenate([[0], np.cumsum(facts[self._fact])])
        start, end = (np.searchsorted(self._code, codes, side) for side in ("left", "right"))
        owned = before[end] - before[start]
        of = np.repeat(np.arange(len(sets)), sizes)
        hits, pairs = (np.bincount(of, x, minlength=len(sets)) for x in (owned > 0, owned))
        with np.errstate(invalid="ignore"):
            return np.stack([hits / sizes, pairs / sizes / n_others])


def _others(facts: Sequence[Fact], i: int) -> dict[str, NDArray[np.bool_]]:
    """Masks over the known facts, by :data:`OTHERS`; never the fact itself."""
    own = facts[i]
    same = np.array([f.relation is not None and f.relation == own.relation for f in facts])
    answer = np.array([f.answer == own.answer for f in facts])
    itself = np.arange(len(facts)) == i
    return dict(zip(OTHERS, (same & ~itself, same & ~answer, ~same & ~itself), strict=True))


def _of_fact(
    result: FactResult,
    draws: Sequence[Sequence[NDArray[np.int32]]],
    owners: _Owners,
    kind: str,
    others: str,
    mask: NDArray[np.bool_],
) -> Iterator[Sharing]:
    sets = [result.neurons, *(c.neurons for c in result.components)]
    own = owners.measure(sets, mask)
    every = owners.measure([s for draw in draws for s in draw], mask)
    # Knowledge neurons come first and have no random counterpart.
    random = np.full_like(own, np.nan)
    random[:, 1:] = every.reshape(2, len(draws), -1).mean(1)
    for i, neurons in enumerate(sets):
        component = i - 1 if i else None
        yield Sharing(
            result.fact_id,
            component,
            result.is_degenerate and component in result.dkn,
            len(neurons),
            kind,
            others,
            int((mask & owners.any).sum()),
            *own[:, i].tolist(),
            *random[:, i].tolist(),
        )


def _samples(found: Sequence[Sharing]) -> Iterator[Sample]:
    """Of one fact, kind and others after another, whose knowledge neurons come first."""
    for (unit, kind, others), of_fact in groupby(found, lambda s: (s.fact_id, s.kind, s.others)):
        whole, *candidates = of_fact
        groups = {"D": [s for s in candidates if s.in_dkn], "C": candidates}
        for group, members in groups.items():
            if not members:
                continue
            where: Conditions = (("matched", group), ("with", kind), ("others", others))
            for figure in ("shared", "overlap"):
                own = float(np.mean([getattr(s, figure) for s in members]))
                random = float(np.mean([getattr(s, f"random_{figure}") for s in members]))
                yield Sample(unit, group, figure, own, where)
                yield Sample(unit, "N", figure, getattr(whole, figure), where)
                yield Sample(unit, "Rnd", figure, random, where)
