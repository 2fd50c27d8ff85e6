"""From the located neurons of a chunk's facts to the candidate components of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config
from dkn_engine.degeneracy.asked_together import Measurement, together
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.functional_filter import MOST_COMPONENTS
from dkn_engine.errors import FactError
from dkn_engine.models.connections import connection_rows
from dkn_engine.topology.clustering import find_candidates
from dkn_engine.types import Component, Fact, Selection


@dataclass(frozen=True, eq=False)
class Located:
    """A fact and its knowledge neurons.

    Attributes:
        fact: whose; ``sequence``: its index among the prompts.
        selection: the neurons, with their scores.
    """

    fact: Fact
    sequence: int
    selection: Selection


@dataclass(frozen=True, eq=False)
class Choice:
    """Candidate components of a fact, disjoint, at most 62; and a remark on them, mostly empty."""

    components: tuple[Component, ...]
    remark: str = ""


def choose_components(
    prompts: Prompts,
    located: Sequence[Located],
    config: Config,
    means: NDArray[np.float64] | None = None,
) -> list[Choice | FactError]:
    """Candidate components of each fact, in their order.

    Choices that ask the model ask for all facts together; no fact's depends on the others, but for
    the rounding of other batches.

    Args:
        prompts: hold all facts.
        located: of each fact.
        config: ``topology`` and ``filter`` are read, and ``seed``.
        means: what suppressed activations become, ``[L, F]``; None for zero.
    """
    return together([_choice(prompts, one, config, means) for one in located])


def _choice(
    prompts: Prompts, one: Located, config: Config, means: NDArray[np.float64] | None
) -> Measurement[Choice]:
    neurons, topology = one.selection.neurons, config.topology
    rows = connection_rows(prompts.layout, neurons, topology)
    every = find_candidates(neurons, *rows, topology)
    yield from ()
    if len(every) <= MOST_COMPONENTS:
        return Choice(every)
    remark = f"the first {MOST_COMPONENTS} of {len(every)} components"
    return Choice(every[:MOST_COMPONENTS], remark)
