"""The objective of attribution beside an answer's probability: which tokens it takes, and where.

An answer's objective is a weighted sum over its tokens, of their log-probabilities or their logits;
``logit_difference`` takes the wrong answers' tokens off. Their first one is predicted where the
answer's own is. Those behind other tokens than the answer's have places of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence

# Of one place: the weight of every token that is taken there.
Terms = dict[int, float]


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective that is not the probability, and how tokens are combined.

    Attributes:
        name: ``log_probability``, ``logit`` or ``logit_difference``.
        answer_tokens: ``mean``, ``sum`` or ``first``; see ``AttributionConfig``.
    """

    name: str
    answer_tokens: str = "mean"

    @classmethod
    def of(cls, config: AttributionConfig) -> Objective | None:
        """That of a configuration; None for the probability, which there is anyway."""
        named = cls(config.objective, config.answer_tokens)
        return None if named.name == "probability" else named

    @property
    def of_logits(self) -> bool:
        """Whether it takes logits; log-probabilities else."""
        return self.name != "log_probability"

    def weights(self, n: int) -> list[float]:
        """Of each of an answer's ``n`` tokens."""
        if self.answer_tokens == "first":
            return [1.0, *[0.0] * (n - 1)]
        return [1 / n if self.answer_tokens == "mean" else 1.0] * n

    def parts(self, one: AnswerSequence) -> list[tuple[AnswerSequence, float]]:
        """The answers whose tokens count, and how much; none where there are no wrong answers."""
        if self.name != "logit_difference":
            return [(one, 1.0)]
        wrong = [(other, -1 / len(one.against)) for other in one.against]
        return [(one, 1.0), *wrong] if wrong else []


@dataclass(frozen=True, eq=False)
class Reading:
    """Where the objective of B sequences is read.

    Attributes:
        sequences: those, and behind them wrong answers that have places of their own.
        owner: int64, of each the one, below B, whose objective it is part of.
        terms: of each, for each of its tokens, what is taken where it is predicted; of a sequence
            in ``free`` for as many tokens as its longest answer has.
        defined: bool ``[B]``, whether a sequence has the objective.
        free: by place those of the B of which an answer goes on with the edited model's own tokens,
            as the longer ones of the released code do.
    """

    sequences: tuple[AnswerSequence, ...]
    owner: NDArray[np.int64]
    terms: list[list[Terms]]
    defined: NDArray[np.bool_]
    free: dict[int, AnswerSequence]

    def others_of(
        self, sequence: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The wrong answers that are to be asked beside N sequences, those that are ``wanted``.

        Returns:
            Int64 ``[M]``, the place among the N whose objective it is part of; ``[M]``, itself.
        """
        n = len(self.defined)
        pair, other = np.nonzero((sequence[:, None] == self.owner[n:]) & wanted[:, None])
        return pair, n + other

    def needed(self, sequence: int) -> list[bool]:
        """For each of a sequence's tokens whether its prediction is looked at."""
        terms, is_asked = self.terms[sequence], sequence < len(self.defined)
        n = len(self.sequences[sequence].targets)
        return [True] * n if is_asked else [bool(some) for some in terms]

    def terms_at(self, sequences: Sequence[int]) -> list[Terms]:
        """Those of all tokens of some of the sequences."""
        return [t for b in sequences for t in self.terms[b][: len(self.sequences[b].targets)]]


def reading_of(objective: Objective | None, sequences: Sequence[AnswerSequence]) -> Reading:
    """Where an objective of sequences is read; without one no terms are taken."""
    parts = [[] if objective is None else objective.parts(s) for s in sequences]
    every, owner = list(sequences), list(range(len(sequences)))
    terms: list[list[Terms]] = [[{} for _ in s.targets] for s in sequences]
    free: dict[int, AnswerSequence] = {}
    for b, own in enumerate(sequences):
        behind = next((part.free for part, _ in parts[b] if part.free is not None), None)
        if behind is not None:
            free[b] = replace(own, free=behind)
        at = {place: terms[b][i] for i, place in enumerate(_places(own, b in free))}
        for answer, sign in parts[b]:
            assert objective is not None
            weights = objective.weights(len(answer.targets))
            added: list[Terms] | None = None
            for i, place in enumerate(_places(answer, b in free)):
                if not weights[i]:
                    continue
                if place not in at and b in free:
                    terms[b].append({})
                    at[place] = terms[b][-1]
                elif place not in at:
                    if added is None:
                        added = [{} for _ in answer.targets]
                        every.append(answer)
                        owner.append(b)
                        terms.append(added)
                    at[place] = added[i]
                token = answer.targets[i]
                at[place][token] = at[place].get(token, 0.0) + sign * weights[i]
    defined = np.array([len(some) > 0 for some in parts], dtype=bool)
    return Reading(tuple(every), np.array(owner, dtype=np.int64), terms, defined, free)


def _places(one: AnswerSequence, free: bool) -> list[object]:
    """For each of an answer's tokens what tells where it is predicted from other places.

    Of answers to one prompt: the tokens that enter the model up to there, those of an encoder in
    front included, or, of an encoder alone, all of them and where. An edited model's own tokens are
    the same for every answer.
    """
    if free:
        return list(range(len(one.targets)))
    at = one.predicted_at()
    if one.masks:
        return list(zip(one.steps or (one.ids,) * len(at), at, strict=True))
    return [(one.source, one.ids[: last + 1]) for last in at]


def tables(terms: Sequence[Terms], device: torch.device) -> tuple[Tensor, NDArray[np.float64]]:
    """Tokens int64 ``[C, K]`` and weights ``[C, K]`` of C places, of which some have fewer than K.

    What is filled up is token 0 with the weight 0.
    """
    most = max([1, *map(len, terms)])
    tokens = np.zeros((len(terms), most), dtype=np.int64)
    weights = np.zeros((len(terms), most))
    for row, some in enumerate(terms):
        tokens[row, : len(some)] = list(some)
        weights[row, : len(some)] = list(some.values())
    return torch.from_numpy(tokens).to(device), weights


def weighted(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums ``[N]`` of weights and values ``[N, K]``; what weighs nothing may be infinite."""
    found: NDArray[np.float64] = (weights * np.where(weights != 0, values, 0.0)).sum(axis=1)
    return found
