"""The same figures where they should be small: random neurons, other facts, other prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.control_subsets import Subsets
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, suppress
from dkn_engine.degeneracy.lattice import Lattice
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.errors import FactError
from dkn_engine.neurons import random_sets
from dkn_engine.types import Drops

Sets = Sequence[NDArray[np.int32]]
_DROPS = ("partial_drop", "full_drop")
_FIRST_DRAWS = 5


@dataclass(frozen=True, eq=False)
class Suppressed:
    """Whose answers a control looks at, and what it suppresses.

    Attributes:
        prompts, sequences: the answers.
        sets: of neurons, of which subsets are suppressed.
        means: what suppressed activations become, ``[L, F]``; None for zero.
    """

    prompts: Prompts
    sequences: Sequence[int]
    sets: Sets
    means: NDArray[np.float64] | None = None


def lattice_of(
    prompts: Prompts,
    sequence: int,
    sets: Sets,
    masks: NDArray[np.int64],
    means: NDArray[np.float64] | None = None,
) -> Lattice:
    """Probabilities of one answer over subsets of suppressed sets of neurons."""
    found = prompts.probabilities(subset_edits(sets, masks, means), [sequence])
    return Lattice(len(sets), masks, found[:, 0])


def measured_lattice(
    prompts: Prompts,
    sequence: int,
    sets: Sets,
    masks: NDArray[np.int64],
    means: NDArray[np.float64] | None = None,
) -> Measurement[Lattice]:
    """:func:`lattice_of` beside other measurements; with the objective that the prompts have."""
    edits = subset_edits(sets, masks, means)
    found, read = yield prompts, Asked(edits, [sequence], objective=True)
    return Lattice(len(sets), masks, found[:, 0], _of_sequence(read, 0))


def _of_sequence(read: NDArray[np.float64] | None, i: int) -> NDArray[np.float64] | None:
    """The objective of one of n sequences, of ``[P, n]``; None where it has none."""
    return None if read is None or np.isnan(read[:, i]).all() else read[:, i]


def subset_edits(
    sets: Sets, masks: NDArray[np.int64], means: NDArray[np.float64] | None = None
) -> list[Edit]:
    """For each mask the edit that suppresses the sets whose bits are set.

    Raises:
        ValueError: the sets are not disjoint.
    """
    # Checked once for all masks, of which a short fact on a small model has more than rows.
    whole = suppress(np.concatenate([np.empty((0, 2), dtype=np.int32), *sets]), means)
    owner = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    on = (masks[:, None] >> owner) & 1 == 1
    return [Edit(whole.neurons[at], whole.factor[at], whole.offset[at]) for at in on]


def random_control(
    asked: Suppressed,
    located: NDArray[np.int32],
    n_draws: int,
    rng: np.random.Generator,
    subsets: Subsets,
) -> Measurement[Drops | None]:
    """Mean over draws of :func:`random_sets`, one after another from ``rng``; None without draws.

    More draws begin with the same ones. With a precision there are only as many as it takes, and
    of each: all suppressed, and a proper subset with its complement, another pair each time; each
    set alone until the excess is as precise as the drops.
    """
    measured: list[Drops] = []
    alone = True
    for n in _rounds(n_draws, subsets.precision):
        edits: list[Edit] = []
        masks = [subsets.of_draw(i, alone) for i in range(len(measured), n)]
        for some in masks:
            drawn = random_sets(asked.sets, located, asked.prompts.layout.widths, rng)
            edits += subset_edits(drawn, some, asked.means)
        found, read = yield asked.prompts, Asked(edits, asked.sequences, objective=True)
        own, ends = _of_sequence(read, 0), np.cumsum([len(some) for some in masks])
        for some, end in zip(masks, ends.tolist(), strict=True):
            at = slice(end - len(some), end)
            values = None if own is None else own[at]
            measured.append(subsets.drops(Lattice(len(asked.sets), some, found[at, 0], values)))
        alone = not subsets.is_narrow([d.excess for d in measured])
        wide = (not subsets.is_narrow([getattr(d, k) for d in measured]) for k in _DROPS)
        if not alone and not any(wide):
            break
    return average(measured) if measured else None


def elsewhere(
    asked: Suppressed, subsets: Subsets, *, others: bool = False
) -> Measurement[Drops | None]:
    """Mean over prompts with the family's own neurons suppressed; None without prompts.

    With a precision, proper subsets with their complements are taken until the partial drop's mean
    over all prompts is that precise, at most as many as without. ``others`` are not the fact's own
    prompt: those of which a suppressed model's own text outgrows the context are left out.
    """
    sequences = list(asked.sequences)
    known: dict[int, NDArray[np.float64]] = {}
    objectives: dict[int, NDArray[np.float64]] = {}
    lattices: list[Lattice] = []
    if not sequences:
        return None
    for some in subsets.rounds():
        new = np.array([m for m in some.tolist() if m not in known], dtype=np.int64)
        edits = subset_edits(asked.sets, new, asked.means)
        if others:
            at, table, read = yield from _of_those_that_fit(asked.prompts, edits, sequences)
            sequences = [sequences[i] for i in at]
            known, objectives = ({m: row[at] for m, row in d.items()} for d in (known, objectives))
            if not sequences:
                return None
        else:
            table, read = yield asked.prompts, Asked(edits, sequences, objective=True)
        known |= dict(zip(new.tolist(), table, strict=True))
        whole = np.stack([known[m] for m in some.tolist()])
        if read is not None:
            objectives |= dict(zip(new.tolist(), read, strict=True))
            read = np.stack([objectives[m] for m in some.tolist()])
        lattices = [
            Lattice(len(asked.sets), some, column, _of_sequence(read, i))
            for i, column in enumerate(whole.T)
        ]
        by_pair = np.stack([subsets.pair_drops(one) for one in lattices])
        finite = by_pair[np.isfinite(by_pair).all(axis=1)]
        if not len(finite) or subsets.is_narrow(finite.mean(axis=0)):
            break
    return average([subsets.drops(one) for one in lattices])


_Table = NDArray[np.float64]


def _of_those_that_fit(
    prompts: Prompts, edits: Sequence[Edit], sequences: Sequence[int]
) -> Measurement[tuple[list[int], _Table, _Table | None]]:
    """Which of n sequences no edited model's text outgrows; their answers and objective."""
    try:
        table, read = yield prompts, Asked(edits, sequences, objective=True)
        return list(range(len(sequences))), table, read
    except FactError:
        pass
    found: dict[int, tuple[_Table, _Table | None]] = {}
    for i, sequence in enumerate(sequences):
        with contextlib.suppress(FactError):
            found[i] = yield prompts, Asked(edits, [sequence], objective=True)
    tables, reads = zip(*found.values(), strict=True) if found else ((), ())
    none = np.empty((len(edits), 0))
    read = None if any(r is None for r in reads) else np.concatenate([none, *reads], axis=1)
    return list(found), np.concatenate([none, *tables], axis=1), read


def average(measured: Sequence[Drops]) -> Drops:
    """Mean drops, their deviation, and the medians of redundancy and excess, where defined."""
    part, full, redundancy, excess, single = (
        _finite([getattr(d, name) for d in measured])
        for name in ("partial_drop", "full_drop", "redundancy", "excess", "single_drop")
    )
    return Drops(
        partial_drop=_figure(np.mean, part),
        full_drop=_figure(np.mean, full),
        redundancy=_figure(np.median, redundancy),
        n=len(full),
        partial_std=_figure(_deviation, part, least=2),
        full_std=_figure(_deviation, full, least=2),
        excess=_figure(np.median, excess),
        n_redundancy=len(redundancy),
        single_drop=_figure(np.mean, single),
        objective=_objectives(measured),
    )


def _objectives(measured: Sequence[Drops]) -> tuple[float, ...]:
    """Means of the measurements that have an objective; empty where none has."""
    rows = [d.objective for d in measured if d.objective]
    return tuple(_figure(np.mean, _finite(column)) for column in zip(*rows, strict=True))


def _rounds(n_draws: int, precision: float) -> Iterator[int]:
    """How many draws there are after each round: a few at first, then twice as many."""
    n = 0
    while n < n_draws:
        n = min(n_draws, max(_FIRST_DRAWS, 2 * n)) if precision else n_draws
        yield n


_deviation = partial(np.std, ddof=1)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _figure(of: Callable[..., Any], values: NDArray[np.float64], least: int = 1) -> float:
    """A figure of at least so many values; NaN of fewer."""
    return float(of(values)) if len(values) >= least else float("nan")
