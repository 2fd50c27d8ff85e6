"""The same figures where they should be small: random neurons, other facts, other prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.edited_answers import Asked, Prompts
from dkn_engine.degeneracy.edits import Edit, suppress
from dkn_engine.degeneracy.lattice import Lattice, drops
from dkn_engine.neurons import random_sets
from dkn_engine.types import Drops

Sets = Sequence[NDArray[np.int32]]


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
    """:func:`lattice_of` beside other measurements."""
    found = yield prompts, Asked(subset_edits(sets, masks, means), [sequence])
    return Lattice(len(sets), masks, found[:, 0])


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
    prompts: Prompts,
    sequence: int,
    sets: Sets,
    located: NDArray[np.int32],
    masks: NDArray[np.int64],
    n_draws: int,
    rng: np.random.Generator,
    means: NDArray[np.float64] | None = None,
) -> Measurement[Drops | None]:
    """Mean over draws of :func:`random_sets`, one after another from ``rng``; None without draws.

    More draws begin with the same ones.
    """
    edits: list[Edit] = []
    for _ in range(n_draws):
        drawn = random_sets(sets, located, prompts.layout.width, rng)
        edits += subset_edits(drawn, masks, means)
    if not edits:
        return None
    found = yield prompts, Asked(edits, [sequence])
    table = found[:, 0].reshape(n_draws, len(masks))
    return average([drops(Lattice(len(sets), masks, row)) for row in table])


def elsewhere(
    prompts: Prompts,
    sequences: Sequence[int],
    sets: Sets,
    masks: NDArray[np.int64],
    means: NDArray[np.float64] | None = None,
) -> Measurement[Drops | None]:
    """Mean over other prompts with the family's own neurons suppressed; None without prompts."""
    if not len(sequences):
        return None
    table = yield prompts, Asked(subset_edits(sets, masks, means), sequences)
    return average([drops(Lattice(len(sets), masks, column)) for column in table.T])


def ablation(
    prompts: Prompts,
    sequence: int,
    sets: Sets,
    masks: NDArray[np.int64],
    means: NDArray[np.float64],
) -> Measurement[Drops]:
    """The family's drops with its activations set to means instead."""
    return drops((yield from measured_lattice(prompts, sequence, sets, masks, means)))


def average(measured: Sequence[Drops]) -> Drops:
    """Mean drops, their deviation, and the medians of redundancy and excess, where defined."""
    part, full, redundancy, excess = (
        _finite([getattr(d, name) for d in measured])
        for name in ("partial_drop", "full_drop", "redundancy", "excess")
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
    )


_deviation = partial(np.std, ddof=1)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _figure(of: Callable[..., Any], values: NDArray[np.float64], least: int = 1) -> float:
    """A figure of at least so many values; NaN of fewer."""
    return float(of(values)) if len(values) >= least else float("nan")
