"""Learning rates by a rule: of a few, the smallest with which the facts are learnt in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dkn_engine.analysis.experiments.evolvability.answers import read_answers
from dkn_engine.analysis.experiments.evolvability.finetune import (
    Diverged,
    FineTuning,
    finetuned,
)
from dkn_engine.analysis.experiments.evolvability.trainable import Trainable
from dkn_engine.errors import UserError
from dkn_engine.types import Fact, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def loss_by_rate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    trainable: Trainable,
    rates: Sequence[float],
    *,
    see: Callable[[float, FineTuning], None] | None = None,
    stop_loss: float | None = None,
    progress: Progress | None = None,
    **training: Any,
) -> dict[float, float]:
    """Mean negative log-probability of an answer token after a training at each rate.

    From the smallest on to the first with which it is ``stop_loss`` or less; those above are not
    tried. Infinite where it diverged. ``see`` is called with each rate and its training, while the
    model has the trained weights. Other arguments: see
    :func:`dkn_engine.analysis.experiments.evolvability.finetune.finetuned`.
    """
    training |= {"stop_loss": stop_loss, "progress": progress}
    steps: int = training["steps"]
    found: dict[float, float] = {}
    for rate in sorted(rates):
        if stop_loss is not None and min(found.values(), default=math.inf) <= stop_loss:
            if progress is not None:
                progress(steps, steps)
            continue
        try:
            with finetuned(model, tokenizer, facts, trainable, lr=rate, **training) as trained:
                probability = read_answers(model, trained.sequences).probability
                if see is not None:
                    see(rate, trained)
        except Diverged:
            found[rate] = math.inf
            if progress is not None:
                progress(steps, steps)
            continue
        with np.errstate(divide="ignore"):
            total = -float(np.log(probability).sum())
        loss = total / sum(len(s.targets) for s in trained.sequences)
        found[rate] = math.inf if math.isnan(loss) else loss
    return found


def best_rate(losses: Mapping[float, float], enough: float | None = None) -> float:
    """The smallest rate whose loss is ``enough`` or less; without one, that of the lowest loss.

    Of equal losses the smallest rate counts.

    Raises:
        UserError: every training diverged.
    """
    good = [rate for rate, loss in losses.items() if enough is not None and loss <= enough]
    if good:
        return min(good)
    rate = min(losses, key=lambda r: (losses[r], r))
    if not math.isfinite(losses[rate]):
        raise UserError(f"rates: fine-tuning diverged at every one of {sorted(losses)}")
    return rate
