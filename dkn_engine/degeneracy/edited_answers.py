"""Prompts that were read once and are asked again under many edits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dkn_engine.degeneracy.edits import Edit, nothing, require_inside
from dkn_engine.degeneracy.free_running import free_running
from dkn_engine.degeneracy.objectives import Objective, reading_of
from dkn_engine.degeneracy.prompt_batch import PromptBatch
from dkn_engine.degeneracy.questions import Answers, Asked, AskedSlopes, Slopes, pairs_of
from dkn_engine.errors import FactError
from dkn_engine.forward.batch_rows import MOST_EDITS
from dkn_engine.forward.causality import require_causal
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.lengths import sequence_groups
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.layout import Layout


class Prompts:
    """The clean pass over a chunk of sequences, and their probabilities under edits.

    The probability of an answer is the product of its tokens' probabilities, each behind what the
    sequence holds before it, or, of a sequence that is ``free``, behind the edited model's own
    tokens.

    Args:
        model, layout: of any kind; it is left as it was found.
        sequences: of prompts and answers; at least one.
        positions: where edits act; see :class:`dkn_engine.FilterConfig`.
        backend: of the operations.
        warn: say so where rows cannot run and full forwards stand in; False if the caller has.
        max_rows: most rows, and most token positions of full forwards, in one batch.
        objective: what :meth:`with_objective` gives beside probabilities, of sequences ``against``
            their wrong answers where it takes those off; None: the probability, so nothing.

    Raises:
        UnsupportedModelError: a decoder is not causal.

    Attributes:
        sequences: as given.
        probability: float64 ``[B]``, of each answer, nothing changed.
        rank: int64 ``[B]``, of the first answer token, 1 = most probable.
        stands_in: full forwards stand in for rows, which cannot run in this model.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        sequences: Sequence[AnswerSequence],
        *,
        positions: str = "answer",
        backend: str = "auto",
        warn: bool = True,
        max_rows: int = MOST_EDITS,
        objective: Objective | None = None,
    ) -> None:
        require_causal(layout)
        self.model, self.layout, self.positions = model, layout, positions
        self.sequences, self.objective = tuple(sequences), objective
        self._reading = reading_of(objective, sequences)
        every = self._reading.sequences
        self._free = {b: one for b, one in enumerate(sequences) if one.free is not None}
        self._batches: list[tuple[NDArray[np.int64], PromptBatch]] = []
        for group in sequence_groups(model, every):

            def read(start: int, stop: int, group: list[int] = group) -> None:
                index = np.array(group[start:stop])
                say = warn and not self.stands_in
                whole = (model, layout, self._reading, index)
                batch = PromptBatch(*whole, positions, backend, say, max_rows)
                self._batches.append((index, batch))

            in_batches(len(group), len(group), read, of="prompts", option="facts_per_chunk")
        self.probability: NDArray[np.float64] = self._joined([b.probability for b in self._of()])
        self.rank: NDArray[np.int64] = self._joined([b.rank for b in self._of()])
        for b, one in self._free.items():
            self.probability[b] = free_running(model, layout, one, [nothing()], positions)[0][0]

    @property
    def stands_in(self) -> bool:
        return any(batch.stands_in for batch in self._of())

    def __len__(self) -> int:
        return len(self.sequences)

    def holds_free(self, sequences: Sequence[int], objective: bool = False) -> bool:
        """Whether one of the sequences goes on with the edited model's own tokens.

        With its ``objective``: or one of its wrong answers.
        """
        free = self._free.keys() | (self._reading.free.keys() if objective else set())
        return not free.isdisjoint(int(b) for b in sequences)

    def _of(self) -> list[PromptBatch]:
        return [batch for _, batch in self._batches]

    def _joined(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """What was found of every batch, in the order of the sequences; of no wrong answers."""
        back = np.argsort(np.concatenate([index for index, _ in self._batches]))
        return np.concatenate(parts)[back][: len(self.sequences)]

    def acting_at(self, positions: str) -> Prompts:
        """The same prompts, not read again, with edits at other positions."""
        other = copy.copy(self)
        other.positions = positions
        other._batches = [(index, batch.acting_at(positions)) for index, batch in self._batches]
        return other

    def first_activations(self) -> NDArray[np.float64]:
        """Clean activations ``[B, L, F]`` where each first answer token is predicted."""
        return self._joined([batch.first_activations() for batch in self._of()])

    def probabilities(
        self, edits: Sequence[Edit], sequences: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Answer probabilities float64 ``[P, n]`` under P edits.

        Args:
            edits: applied one at a time to every sequence.
            sequences: which n of them, ascending; None for all.

        Raises:
            ValueError: the model lacks a neuron of an edit.
        """
        return self.outcomes(edits, sequences, greedy=False)[0]

    def outcomes(
        self,
        edits: Sequence[Edit],
        sequences: Sequence[int] | None = None,
        *,
        greedy: bool = True,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Answer probabilities ``[P, n]``, and whether greedy decoding gives the answer's tokens.

        It does where each of them is the most probable one behind those before it (or as probable
        as another); not to be read without ``greedy``. Arguments and errors as in
        :meth:`probabilities`.
        """
        wanted = range(len(self)) if sequences is None else sequences
        return self.answers([Asked(edits, wanted)], greedy=greedy)[0]

    def answers(
        self, asked: Sequence[Asked], *, greedy: bool = False
    ) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """:meth:`outcomes` of several questions, each with edits and sequences of its own.

        Rows of all of them climb together. Errors as in :meth:`probabilities`.
        """
        plain = [replace(one, objective=False) for one in asked]
        return [(p, hit) for p, hit, _ in self._answers(plain, greedy=greedy)]

    def with_objective(
        self, asked: Sequence[Asked]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64] | None]]:
        """Answer probabilities ``[P, n]`` of several questions, and the objective ``[P, n]``.

        None in its place for a question that does not want it, and for prompts that have none; NaN
        of sequences that lack the wrong answers that it takes off. Else as :meth:`answers`.
        """
        has = self.objective is not None
        found = self._answers(asked, greedy=False)
        return [
            (p, value if has and one.objective else None)
            for one, (p, _, value) in zip(asked, found, strict=True)
        ]

    def _answers(self, asked: Sequence[Asked], *, greedy: bool) -> list[Answers]:
        if not asked:
            return []
        edits = [edit for one in asked for edit in one.edits]
        require_inside(edits, self.layout)
        sizes = [len(one.edits) * len(one.sequences) for one in asked]
        wanted = np.repeat([one.objective for one in asked], sizes)
        columns = self._ofpairs_of(edits, *pairs_of(asked), wanted, greedy)
        ends = np.cumsum(sizes)[:-1]
        split = [
            [
                some.reshape(len(one.edits), len(one.sequences))
                for one, some in zip(asked, np.split(column, ends), strict=True)
            ]
            for column in columns
        ]
        return list(zip(*split, strict=True))

    def _ofpairs_of(
        self,
        edits: Sequence[Edit],
        edit: NDArray[np.int64],
        sequence: NDArray[np.int64],
        wanted: NDArray[np.bool_],
        greedy: bool,
    ) -> Answers:
        """``[N]`` each of N pairs of an edit and a sequence; the objective of those ``wanted``."""
        n, objective = len(edit), self.objective if wanted.any() else None
        is_free = np.isin(sequence, list(self._free))
        if objective is not None:
            is_free |= wanted & np.isin(sequence, list(self._reading.free))
            pair, other = self._reading.others_of(sequence, wanted)
            edit, sequence = np.append(edit, edit[pair]), np.append(sequence, other)
            is_free = np.append(is_free, np.zeros(len(pair), dtype=bool))
        p, hit, value = np.zeros(len(edit)), np.zeros(len(edit), dtype=bool), np.zeros(len(edit))
        for index, batch in self._batches:
            at = np.flatnonzero(np.isin(sequence, index) & ~is_free)
            if len(at):
                place = np.searchsorted(index, sequence[at])
                found = batch.outcomes(edits, edit[at], place, objective, greedy=greedy)
                p[at], hit[at], value[at] = found
        for b in np.unique(sequence[is_free]).tolist():
            at = np.flatnonzero((sequence == b) & is_free)
            p[at], hit[at], value[at] = self._of_free(b, [edits[i] for i in edit[at]], objective)
        if objective is not None:
            np.add.at(value, pair, value[n:])
            value[:n][~self._reading.defined[sequence[:n]]] = np.nan
        return p[:n], hit[:n], value[:n]

    def _of_free(self, b: int, edits: Sequence[Edit], objective: Objective | None) -> Answers:
        """``[P]`` each of a sequence that goes on with the edited model's own tokens."""
        one, terms, of_logits = self._free.get(b), [], False
        if objective is not None:
            one, terms = self._reading.free.get(b, one), self._reading.terms[b]
            of_logits = objective.of_logits
        assert one is not None
        whole = (self.model, self.layout, one, edits, self.positions)
        return free_running(*whole, terms, of_logits=of_logits)

    def gate_slopes(self, asked: Sequence[AskedSlopes]) -> list[Slopes]:
        """Log-probabilities of answers behind gates, and their derivatives by each gate.

        Rows of all questions climb together.

        Returns:
            Of each question float64 ``[R]`` and ``[R, n]``.

        Raises:
            FactError: a sequence goes on with the edited model's own tokens.
            UnsupportedModelError: a module passes no gradients on.
            ValueError: the model lacks a neuron, or closed gates of different questions make
                different things of one.
        """
        require_inside([one.closed for one in asked], self.layout)
        if any(self.holds_free(one.sequences) for one in asked):
            raise FactError(
                "gradients need answers of fixed tokens (teacher_forced=true, or "
                "continuation='clean'); an edited model's own tokens depend on the edit"
            )
        found: dict[int, Slopes] = {}
        for index, batch in self._batches:
            mine = [i for i, one in enumerate(asked) if one.sequence in index]
            if mine:
                places = [int(np.searchsorted(index, asked[i].sequence)) for i in mine]
                slopes = batch.gate_slopes(places, [asked[i] for i in mine])
                found |= dict(zip(mine, slopes, strict=True))
        return [found[i] for i in range(len(asked))]

    def gated_activations(
        self, sequence: int, closed: Edit, gates: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Activations of n neurons behind gates, each before its own gate.

        Args:
            sequence: where its C answer tokens are predicted, the clean model's where it is free.
            closed, gates: as of :class:`AskedSlopes`.

        Returns:
            Float64 ``[C, R, n]``.

        Raises:
            ValueError: the model lacks a neuron.
        """
        require_inside([closed], self.layout)
        batch, place = self._batch_of(sequence)
        return batch.gated_activations(place, closed, gates)

    def _batch_of(self, sequence: int) -> tuple[PromptBatch, int]:
        """The batch that holds a sequence, and its place there."""
        for index, batch in self._batches:
            if sequence in index:
                return batch, int(np.searchsorted(index, sequence))
        raise IndexError(f"sequence must be below {len(self)}; got {sequence}")

    def as_model_is(self, lowest: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """As :meth:`outcomes`, ``[B]`` each, by forwards of the model as it is by now.

        Args:
            lowest: layer below which the model is as it was.
        """
        probability, hits = zip(*(batch.as_model_is(lowest) for batch in self._of()), strict=True)
        return self._joined(probability), self._joined(hits)
