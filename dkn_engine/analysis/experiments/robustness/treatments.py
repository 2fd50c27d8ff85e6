"""What is done to sets of neurons, and what a fact's queries answer then."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.config import On, Value
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, enhance, suppress
from dkn_engine.degeneracy.weight_edits import Which, scaled_weights
from dkn_engine.errors import UserError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import Layout
from dkn_engine.statistics.table import Conditions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Treatment:
    """A change of neurons.

    Attributes:
        action: ``suppress`` or ``enhance``.
        value: what suppressed activations become, ``zero`` or ``mean``; ``x<factor>`` of enhanced
            ones.
        on: the activations at the positions that predict the answer, those at ``all`` positions,
            or the neurons' ``weights``: ``on="input_and_output_weights"`` of
            :func:`dkn_engine.intervene`.
        factor: of the enhancement; 0 for suppression.
    """

    action: Literal["suppress", "enhance"]
    value: str
    on: On
    factor: float = 0.0

    @property
    def conditions(self) -> Conditions:
        return (("action", self.action), ("value", self.value), ("on", self.on))

    @property
    def as_measured(self) -> Treatment:
        """Weights of 0 are activations of 0 everywhere."""
        if self.on == "weights" and self.value == "zero":
            return dataclasses.replace(self, on="all")
        return self


def treatments(
    values: Sequence[Value], factors: Sequence[float], on: Sequence[On]
) -> list[Treatment]:
    """All suppressions, then all enhancements; no mean activation can be put into weights.

    Raises:
        UserError: there is nothing to do.
    """
    found = [
        *(Treatment("suppress", v, o) for v in values for o in on if (v, o) != ("mean", "weights")),
        *(Treatment("enhance", f"x{f:g}", o, f) for f in factors for o in on),
    ]
    if not found:
        raise UserError("values, factors and on leave nothing to be done")
    return found


@dataclass(frozen=True, eq=False)
class Outcome:
    """What Q queries answer under S changes.

    Attributes:
        probability: float64 ``[S, Q]``, of the answer.
        exact: bool ``[S, Q]``, whether greedy decoding gives its tokens.
    """

    probability: NDArray[np.float64]
    exact: NDArray[np.bool_]


class Trial:
    """The queries of one fact, read once, under treatments of the same sets of neurons.

    Args:
        model, layout: the decoder; it is left as it was found.
        sequences: one a query.
        sets: neurons int32 ``[n, 2]`` each.
        means: float64 ``[L, F]``; needed for ``value="mean"``.
        backend: of the operations.
        warn: say so where full forwards stand in for rows.

    Attributes:
        clean: of the model as it is, ``[1, Q]``.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        sequences: Sequence[AnswerSequence],
        sets: Sequence[NDArray[np.int32]],
        *,
        means: NDArray[np.float64] | None = None,
        backend: str = "auto",
        warn: bool = True,
    ) -> None:
        self.model, self.layout, self.sets, self.means = model, layout, sets, means
        self._prompts = {"answer": Prompts(model, layout, sequences, backend=backend, warn=warn)}
        self._found: dict[Treatment, Outcome] = {}
        nothing = np.empty((0, 2), dtype=np.int32)
        self.clean = Outcome(*self._prompts["answer"].outcomes([suppress(nothing)]))

    def outcome(self, treatment: Treatment) -> Outcome:
        """Of every set, in their order; what was measured before is not measured again."""
        treatment = treatment.as_measured
        if treatment not in self._found:
            by = self._on_weights if treatment.on == "weights" else self._on_values
            self._found[treatment] = by(treatment)
        return self._found[treatment]

    def _on_values(self, treatment: Treatment) -> Outcome:
        if treatment.on not in self._prompts:
            self._prompts[treatment.on] = self._prompts["answer"].acting_at(treatment.on)
        edits = [self._edit(s, treatment) for s in self.sets]
        return Outcome(*self._prompts[treatment.on].outcomes(edits))

    def _edit(self, neurons: NDArray[np.int32], treatment: Treatment) -> Edit:
        if treatment.action == "enhance":
            return enhance(neurons, treatment.factor)
        if treatment.value == "zero":
            return suppress(neurons)
        assert self.means is not None
        return suppress(neurons, self.means)

    def _on_weights(self, treatment: Treatment) -> Outcome:
        probability, exact = [], []
        which: Which = "input_and_output_weights"
        with guest(self.model, grad=False):
            for neurons in self.sets:
                lowest = int(neurons[:, 0].min(initial=self.layout.n_layers - 1))
                with scaled_weights(self.layout, neurons, treatment.factor, which):
                    p, hit = self._prompts["answer"].as_model_is(lowest)
                probability.append(p)
                exact.append(hit)
        shape = len(self.sets), self.clean.exact.shape[1]
        return Outcome(np.reshape(probability, shape), np.reshape(exact, shape).astype(bool))
