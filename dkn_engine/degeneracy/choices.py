"""What candidate components are chosen from, and what a choice gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dkn_engine.degeneracy.asked_together import Measurement
from dkn_engine.degeneracy.null_draws import Null
from dkn_engine.types import Component, Fact, Selection


@dataclass(frozen=True, eq=False)
class Located:
    """A fact and its knowledge neurons.

    Attributes:
        fact: whose; ``sequence``: its index among the prompts.
        selection: the neurons, with their scores.
        paraphrases: indices of its other prompts that may be used for finding.
    """

    fact: Fact
    sequence: int
    selection: Selection
    paraphrases: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Choice:
    """Candidate components of a fact.

    Attributes:
        components: disjoint, at most 62.
        remark: on them, mostly empty.
        null: begins to measure what chance finds by the same choice, where that asks the model;
            None where the filter's own control does, or without draws.
        connection_weights: float32 ``[m]``, of the fact's neurons (``types.Selection``).
        interactions: float64 ``[n (n - 1) / 2]``, of pairs of the fact's neurons, where the choice
            measures them (``types.Degeneracy.pair_interactions``).
    """

    components: tuple[Component, ...]
    remark: str = ""
    null: Callable[[], Measurement[Null]] | None = None
    connection_weights: NDArray[np.float32] = field(
        default_factory=lambda: np.empty(0, dtype=np.float32)
    )
    interactions: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
