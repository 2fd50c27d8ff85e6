"""The slow way of ``brute_force_scores.py`` for encoders and for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dkn_engine.forward.contexts import AnswerSequence
from tests.support import tiny_encoder_decoders, tiny_encoders
from tests.support.brute_force_scores import BruteForce, Copy, Read, Rule, with_mask
from tests.support.tiny import N_LAYERS


class EncoderBruteForce(BruteForce):
    """Answers are predicted at their masks, which the baseline leaves alone."""

    def __init__(self, name: str, model: nn.Module, site: str) -> None:
        part = tiny_encoders.down_of if site == "post" else tiny_encoders.act_of
        self.model, self.modules = model, [part(name, model, i) for i in range(N_LAYERS)]
        self.of_output = False

    def reads(self, sequence: AnswerSequence) -> list[Read]:
        return [Read(at, at, t) for at, t in zip(sequence.masks, sequence.targets, strict=True)]

    def masked_copies(self, sequence: AnswerSequence) -> list[Copy]:
        others = [j for j in range(len(sequence.ids)) if j not in sequence.masks]
        return [with_mask(sequence.ids, j) for j in others]

    def scores(self, sequence: AnswerSequence, rule: Rule, *rest: Any, **more: Any) -> Tensor:
        """Of tokens that are predicted from other inputs each, one by one."""
        if not sequence.steps:
            return super().scores(sequence, rule, *rest, **more)
        every = [self.scores(at, rule, *rest, **more) for at in steps_of(sequence)]
        return torch.stack([scores[i] for i, scores in enumerate(every)])

    def probability(self, sequence: AnswerSequence) -> float:
        """Of the whole answer."""
        return whole_probability(self, steps_of(sequence))


class EncoderDecoderBruteForce(BruteForce):
    """A copy is what the encoder reads and what the decoder reads; the encoder's is masked."""

    def __init__(self, name: str, model: nn.Module, site: str) -> None:
        part = {"post": tiny_encoder_decoders.down_of, "pre": tiny_encoder_decoders.act_of}[site]
        self.model, self.modules = model, [part(name, model, i) for i in range(N_LAYERS)]
        self.of_output = False

    def read_by(self, sequence: AnswerSequence) -> Copy:
        return sequence.source, sequence.ids

    def masked_copies(self, sequence: AnswerSequence) -> list[Copy]:
        places = [j for j in range(len(sequence.source)) if j not in sequence.blank]
        return [(with_mask(sequence.source, j), sequence.ids) for j in places]

    def logits(self, copies: Sequence[Copy]) -> Tensor:
        sources, ids = zip(*copies, strict=True)
        inputs = {"input_ids": torch.tensor(sources), "decoder_input_ids": torch.tensor(ids)}
        found: Tensor = self.model(**inputs).logits
        return found

    def probability(self, sequence: AnswerSequence) -> float:
        """Of the whole answer."""
        return whole_probability(self, [sequence] * len(sequence.targets))


def steps_of(sequence: AnswerSequence) -> list[AnswerSequence]:
    """For each token of an answer the sentence that it is predicted from."""
    inputs = sequence.steps or (sequence.ids,) * len(sequence.targets)
    return [replace(sequence, ids=ids, steps=()) for ids in inputs]


def whole_probability(oracle: BruteForce, inputs: Sequence[AnswerSequence]) -> float:
    """The product over an answer's tokens, each predicted from an input of its own."""
    rows = oracle.logits([oracle.read_by(one) for one in inputs]).softmax(-1).detach()
    reads = oracle.reads(inputs[0])
    return float(np.prod([row[r.position, r.target] for row, r in zip(rows, reads, strict=True)]))
