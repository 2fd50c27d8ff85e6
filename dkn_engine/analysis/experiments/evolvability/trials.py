"""What is kept of trainings, and trials of rates that make one unnecessary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.analysis.config import EvolvabilityConfig
from dkn_engine.analysis.experiments.evolvability.asked import Answer, Asked
from dkn_engine.analysis.experiments.evolvability.finetune import FineTuning
from dkn_engine.analysis.experiments.evolvability.trainable import Trainable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, eq=False)
class Trained:
    """What is kept of a training.

    Attributes:
        answers: of the trained model.
        n_steps: that were taken.
        change: of each neuron, float64 ``[L, F]``, where all of them may change.
    """

    answers: Answer
    n_steps: int
    change: NDArray[np.float64] | None

    @classmethod
    def of(
        cls, model: nn.Module, asked: Asked, tuning: FineTuning, trainable: Trainable
    ) -> Trained:
        change = tuning.neuron_change() if isinstance(trainable, str) else None
        return cls(asked.ask(model), len(tuning.losses), change)


class Trials:
    """Trials of rates that came to the same end as the training that they were tried for.

    All weights are their own probe: where a trial has learnt the facts, the training would take the
    same steps again.

    Args:
        settings: of the trainings.
        look: makes of a training, while the model has its weights, what is kept of it.
    """

    def __init__(
        self, settings: EvolvabilityConfig, look: Callable[[FineTuning, Trainable], Trained]
    ) -> None:
        self._settings, self.look = settings, look
        self._found: dict[tuple[str, float], Trained] = {}

    def see(self, trainable: Trainable, rate: float, tuning: FineTuning) -> None:
        """Keep what a trial has come to, if that is what a training would."""
        enough = self._settings.stop_loss
        learnt = enough is not None and tuning.losses[-1] <= enough
        if isinstance(trainable, str) and learnt and len(tuning.losses) <= self._settings.steps:
            self._found[trainable, rate] = self.look(tuning, trainable)

    def finished(self, trainable: Trainable, rate: float) -> Trained | None:
        """The end of a training, if a trial has come to it."""
        return self._found.get((trainable, rate)) if isinstance(trainable, str) else None
