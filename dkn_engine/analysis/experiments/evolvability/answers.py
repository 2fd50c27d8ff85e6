"""Answers' logits in padded batches, projected to the vocabulary only where an answer is due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.forward.contexts import AnswerSequence, Contexts, build_contexts
from dkn_engine.forward.lengths import padded_batches
from dkn_engine.forward.log_probability import log_probabilities
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.models.devices import input_device
from dkn_engine.models.guest import guest

if TYPE_CHECKING:
    from torch import Tensor, nn

# Most token positions of one forward. Small batches of like length waste little on padding, and a
# CPU is as fast on them, down to what a training pays for each: gradients as long as the weights.
_POSITIONS = {"cpu": 512}
_POSITIONS_ELSEWHERE = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model says to prompts.

    Attributes:
        probability: float64 ``[n]``, of the answer: the product over its teacher-forced tokens.
        greedy: bool ``[n]``, whether greedy decoding begins with the answer, which it does if and
            only if every teacher-forced token is the most probable one.
    """

    probability: NDArray[np.float64]
    greedy: NDArray[np.bool_]


def read_answers(model: nn.Module, sequences: Sequence[AnswerSequence]) -> Answers:
    """Probabilities and greedy matches of the answers; the model is left as it was found."""
    probability = np.ones(len(sequences))
    greedy = np.ones(len(sequences), dtype=bool)
    with guest(model, grad=False):
        for at, contexts in batches(model, sequences):
            logits = answer_logits(model, contexts)
            log_p = log_probabilities(logits, contexts.target)[0].double().cpu().numpy()
            hit = (logits.argmax(-1) == contexts.target).cpu().numpy()
            owner = at[contexts.sequence.cpu().numpy()]
            np.multiply.at(probability, owner, np.exp(log_p))
            np.logical_and.at(greedy, owner, hit)
    return Answers(probability, greedy)


def batches(
    model: nn.Module, sequences: Sequence[AnswerSequence]
) -> Iterator[tuple[NDArray[np.int64], Contexts]]:
    """Sequences by length in padded batches, with their places in the list given."""
    device = input_device(model)
    limit = _POSITIONS.get(device.type, _POSITIONS_ELSEWHERE)
    for batch in padded_batches(model, [len(s.ids) for s in sequences], limit):
        yield np.array(batch), build_contexts([sequences[i] for i in batch], device)


def answer_logits(model: nn.Module, contexts: Contexts) -> Tensor:
    """Logits ``[C, V]`` at the contexts' positions, by the model's own forward."""
    return position_logits(model, contexts.inputs(), contexts.sequence, contexts.position)
