"""Candidate components that cover for one another, and what the same search finds by chance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config
from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.choices import Choice, Located
from dkn_engine.degeneracy.controls import measured_lattice
from dkn_engine.degeneracy.covering_groups import Drops, Groups, Search, covering_groups
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, suppress
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family
from dkn_engine.degeneracy.null_draws import Null, Outcome
from dkn_engine.degeneracy.questions import AskedSlopes, Slopes
from dkn_engine.neurons import random_sets
from dkn_engine.seeds import generator
from dkn_engine.topology.arrays import component

T = TypeVar("T")
RANDOM_SEARCH = "random search"


def covering_choice(
    prompts: Prompts,
    one: Located,
    config: Config,
    means: NDArray[np.float64] | None = None,
    paraphrases: Prompts | None = None,
) -> Measurement[Choice]:
    """Groups of a fact's neurons that cover for one another, by the order of their first neuron.

    Arguments as in :func:`dkn_engine.degeneracy.component_choice.choose_components`.
    """
    asked = [(prompts, one.sequence)]
    if paraphrases is not None:
        asked += [(paraphrases, i) for i in one.paraphrases]
    neurons = one.selection.neurons
    rng = generator(config.seed, one.fact.id, "covering groups")
    found = yield from _searched(asked, neurons, config, rng, means)
    groups = _members(found, neurons)
    null = partial(_random_null, asked, one, groups, config, means)
    return Choice(
        tuple(component(group) for group in groups),
        null=null if config.filter.n_random_searches else None,
        interactions=found.interactions[np.triu_indices(len(found.interactions), 1)],
    )


Questions = Sequence[tuple[Prompts, int]]


def _searched(
    asked: Questions,
    neurons: NDArray[np.int32],
    config: Config,
    rng: np.random.Generator,
    means: NDArray[np.float64] | None,
) -> Measurement[Groups]:
    search = covering_groups(len(neurons), config.filter, rng)
    return (yield from measured(search, asked, suppress(neurons, means)))


def _members(found: Groups, neurons: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return [neurons[found.labels == group] for group in range(found.k)]


def measured(search: Search[T], asked: Questions, closed: Edit) -> Measurement[T]:
    """What a search among neurons returns, whose questions the model answers.

    Args:
        search: of sets of the neurons.
        asked: prompts and the index of an answer among them, the fact's own prompt first.
        closed: suppresses the neurons.
    """
    answer: Drops | None = None
    while True:
        try:
            # An answer may become impossible.
            with np.errstate(invalid="ignore"):
                sets = next(search) if answer is None else search.send(answer)
        except StopIteration as end:
            found: T = end.value
            return found
        drops, slopes = [], []
        for prompts, sequence in asked:
            gates = (~sets).astype(np.float64)
            behind: Slopes = yield prompts, AskedSlopes(sequence, closed, gates)
            drops.append(np.log(prompts.probability[sequence]) - behind[0])
            slopes.append(behind[1])
        answer = np.array(drops), np.array(slopes)


def _random_null(
    asked: Questions,
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
        (neurons,) = random_sets([located], located, prompts.layout.widths, rng)
        drawn = yield from _searched(asked, neurons, config, rng, means)
        outcomes.append(
            (yield from _outcome(prompts, sequence, _members(drawn, neurons), config, means))
        )
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
