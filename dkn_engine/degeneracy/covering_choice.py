"""Candidate components that cover for one another, and what the same search finds by chance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config
from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.choices import Choice, Located
from dkn_engine.degeneracy.controls import measured_lattice
from dkn_engine.degeneracy.covering_groups import Measure, covering_groups
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family
from dkn_engine.degeneracy.null_draws import Null, Outcome
from dkn_engine.neurons import random_sets
from dkn_engine.seeds import generator
from dkn_engine.topology.arrays import component

RANDOM_SEARCH = "random search"


def covering_choice(
    prompts: Prompts,
    one: Located,
    config: Config,
    means: NDArray[np.float64] | None = None,
    paraphrases: Prompts | None = None,
) -> Choice:
    """Groups of a fact's neurons that cover for one another, by the order of their first neuron.

    Arguments as in :func:`dkn_engine.degeneracy.component_choice.choose_components`.
    """
    asked = [(prompts, one.sequence)]
    if paraphrases is not None:
        asked += [(paraphrases, i) for i in one.paraphrases]
    neurons = one.selection.neurons
    rng = generator(config.seed, one.fact.id, "covering groups")
    groups = _searched(asked, neurons, config, rng, means)
    null = partial(_random_null, asked, one, groups, config, means)
    components = tuple(component(group) for group in groups)
    return Choice(components, null=null if config.filter.n_random_searches else None)


Asked = Sequence[tuple[Prompts, int]]


def _searched(
    asked: Asked,
    neurons: NDArray[np.int32],
    config: Config,
    rng: np.random.Generator,
    means: NDArray[np.float64] | None,
) -> list[NDArray[np.int32]]:
    measure = slopes_of(asked, neurons, means)
    with np.errstate(invalid="ignore"):  # an answer that becomes impossible
        found = covering_groups(measure, len(neurons), config.filter, rng)
    return [neurons[found.labels == group] for group in range(found.k)]


def slopes_of(
    asked: Asked, neurons: NDArray[np.int32], means: NDArray[np.float64] | None = None
) -> Measure:
    """What suppressing sets of neurons costs answers, and the slopes, as a search asks it.

    Args:
        asked: prompts and the index of an answer among them, the fact's own prompt first.
        neurons: int32 ``[n, 2]``.
        means: what suppressed activations become, ``[L, F]``; None for zero.
    """
    closed = suppress(neurons, means)

    def measure(sets: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        drops, slopes = [], []
        gates = (~sets).astype(np.float64)
        for prompts, sequence in asked:
            log_p, slope = prompts.gate_slopes(sequence, closed, gates)
            drops.append(np.log(prompts.probability[sequence]) - log_p)
            slopes.append(slope)
        return np.array(drops), np.array(slopes)

    return measure


def _random_null(
    asked: Asked,
    one: Located,
    groups: Sequence[NDArray[np.int32]],
    config: Config,
    means: NDArray[np.float64] | None,
) -> Measurement[Null]:
    """The fact's groups against those that the search finds among other neurons of its layers.

    As many neurons of every layer as were located there, none of them located (as long as the
    layer has others).
    """
    located, (prompts, sequence) = one.selection.neurons, asked[0]
    rng = generator(config.seed, one.fact.id, RANDOM_SEARCH)
    outcomes = []
    own = yield from _outcome(prompts, sequence, groups, config, means)
    for _ in range(config.filter.n_random_searches):
        (neurons,) = random_sets([located], located, prompts.layout.width, rng)
        drawn = _searched(asked, neurons, config, rng, means)
        outcomes.append((yield from _outcome(prompts, sequence, drawn, config, means)))
    return Null.of(RANDOM_SEARCH, own, outcomes)


def _outcome(
    prompts: Prompts,
    sequence: int,
    groups: Sequence[NDArray[np.int32]],
    config: Config,
    means: NDArray[np.float64] | None,
) -> Measurement[Outcome]:
    masks = np.arange(1 << len(groups), dtype=np.int64)
    lattice: Lattice = yield from measured_lattice(prompts, sequence, groups, masks, means)
    rule = config.filter.min_alone, config.filter.max_none
    family = degenerate_family(lattice, [0.0] * len(groups), *rule)
    return Outcome.of(lattice, family)
