"""Prompts that were read once and are asked again under many edits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dkn_engine.config import AttributionConfig
from dkn_engine.degeneracy.edits import Edit, nothing, require_inside
from dkn_engine.degeneracy.edits_by_forwards import forward_log_probabilities
from dkn_engine.degeneracy.edits_by_rows import row_log_probabilities
from dkn_engine.degeneracy.free_running import free_running
from dkn_engine.degeneracy.gates import Gated, Settings, forward_gates, joined, row_gates
from dkn_engine.degeneracy.influences import forward_activations, row_activations
from dkn_engine.degeneracy.objectives import Objective, Reading, reading_of, tables, weighted
from dkn_engine.errors import FactError
from dkn_engine.forward.causality import require_causal
from dkn_engine.forward.contexts import AnswerSequence, build_contexts
from dkn_engine.forward.encoder_states import with_states
from dkn_engine.forward.gradient_check import refuse_cut_gradients
from dkn_engine.forward.lengths import sequence_groups
from dkn_engine.forward.patched_rows import RowEngine, SweepUnsupported
from dkn_engine.forward.prefill import prefill, token_log_probabilities
from dkn_engine.forward.row_check import Check, rows_tried_once, warn_of_full_forwards
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.forward.upper_layers import UpperLayers
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import Layout

MOST_ROWS = 1024
# A backward pass holds every layer's activations of a row: so many times what a row holds else.
_BACKWARD = 4


def most_rows(config: AttributionConfig) -> int:
    """How many rows of edits climb at once at most: as many as path points, where that is set."""
    return MOST_ROWS if config.rows_per_batch == "auto" else config.rows_per_batch


@dataclass(frozen=True, eq=False)
class Asked:
    """Edits of some of the sequences of :class:`Prompts`, each edit of every one.

    Attributes:
        edits: applied one at a time.
        sequences: of the prompts, ascending.
        objective: whether the objective is wanted too, where the prompts have one.
    """

    edits: Sequence[Edit]
    sequences: Sequence[int]
    objective: bool = False


@dataclass(frozen=True, eq=False)
class AskedSlopes:
    """Gates in front of a sequence's neurons.

    Attributes:
        sequence: of the prompts.
        closed: what closed gates do: suppress n neurons. Open ones do nothing.
        gates: float64 ``[R, n]``, each from 0, closed, to 1, open; one setting of all a row.
    """

    sequence: int
    closed: Edit
    gates: NDArray[np.float64]

    @property
    def sequences(self) -> Sequence[int]:
        return [self.sequence]


# Log-probabilities ``[R]`` of an answer behind gates, and their derivatives ``[R, n]``.
Slopes = tuple[NDArray[np.float64], NDArray[np.float64]]
# Answer probabilities ``[P, n]``, whether greedy decoding gives the answers, and their objective.
Answers = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]


def _pairs(asked: Sequence[Asked]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 ``[N]`` each: edits, numbered through, and sequences, question by question."""
    edit, sequence, first = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for one in asked:
        n, wanted = len(one.edits), np.asarray(one.sequences, dtype=np.int64)
        edit.append(np.repeat(np.arange(first, first + n), len(wanted)))
        sequence.append(np.tile(wanted, n))
        first += n
    return np.concatenate(edit), np.concatenate(sequence)


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
        max_rows: int = MOST_ROWS,
        objective: Objective | None = None,
    ) -> None:
        require_causal(layout)
        self.model, self.layout, self.positions = model, layout, positions
        self.sequences, self.objective = tuple(sequences), objective
        self._reading = reading_of(objective, sequences)
        every = self._reading.sequences
        self._free = {b: one for b, one in enumerate(sequences) if one.free is not None}
        self._batches: list[tuple[NDArray[np.int64], _Batch]] = []
        for group in sequence_groups(model, every):

            def read(start: int, stop: int, group: list[int] = group) -> None:
                index = np.array(group[start:stop])
                say = warn and not self.stands_in
                whole = (model, layout, self._reading, index)
                batch = _Batch(*whole, positions, backend, say, max_rows)
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

    def _of(self) -> list[_Batch]:
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
        columns = self._of_pairs(edits, *_pairs(asked), wanted, greedy)
        ends = np.cumsum(sizes)[:-1]
        split = [
            [
                some.reshape(len(one.edits), len(one.sequences))
                for one, some in zip(asked, np.split(column, ends), strict=True)
            ]
            for column in columns
        ]
        return list(zip(*split, strict=True))

    def _of_pairs(
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

    def _batch_of(self, sequence: int) -> tuple[_Batch, int]:
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


class _Batch:
    """Prompts that are padded to one length; see :class:`Prompts`."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        reading: Reading,
        index: NDArray[np.int64],
        positions: str,
        backend: str,
        warn: bool,
        max_rows: int,
    ) -> None:
        self.model, self.layout, self.positions = model, layout, positions
        self._max_rows = max_rows
        self.stands_in, self._backend, self._warn = False, backend, warn
        self.contexts = build_contexts([reading.sequences[i] for i in index], layout.device)
        with guest(model, grad=False):
            self._clean = prefill(model, layout, self.contexts)
            self.contexts = with_states(model, self.contexts, self._clean)
            self.rows = self._engine()
        self._upper = UpperLayers(layout, self.contexts, self._clean)
        self._sequence = self.contexts.answer.cpu().numpy()
        self._starts = np.flatnonzero(np.diff(self._sequence, prepend=-1))
        needed = np.array([one for i in index.tolist() for one in reading.needed(i)])
        self._needed = np.flatnonzero(needed)
        self._n_needed = np.add.reduceat(needed, self._starts, dtype=np.int64)
        self._tokens, self._weights = tables(reading.terms_at(index.tolist()), layout.device)
        log_p = self._clean.log_probability.double().cpu().numpy()
        self.probability: NDArray[np.float64] = np.exp(self._sum(log_p[None])[0])
        first = (self.contexts.token == 0).cpu().numpy()
        self.rank: NDArray[np.int64] = self._clean.rank.cpu().numpy()[first]

    def acting_at(self, positions: str) -> _Batch:
        other = copy.copy(self)
        other._warn = self._warn and not self.stands_in  # or it was said
        other.positions, other.stands_in = positions, False
        with guest(self.model, grad=False):
            other.rows = other._engine()
        return other

    def _engine(self) -> RowEngine | None:
        single = bool((torch.bincount(self.contexts.sequence) == 1).all())
        every = self.positions == "all" or (self.positions == "answer_all" and not single)
        if every or not self.layout.alone:
            return None
        try:
            clean = self._clean
            return rows_tried_once(self.model, self.layout, self.contexts, clean, self._backend)
        except SweepUnsupported as reason:
            self._stand_in(reason, self._warn)
            return None

    def _stand_in(self, reason: SweepUnsupported, warn: bool) -> None:
        """From here on full forwards answer."""
        self.rows, self.stands_in = None, True
        if warn:
            warn_of_full_forwards(self.model, reason, stacklevel=8)

    def first_activations(self) -> NDArray[np.float64]:
        first = self.contexts.token == 0
        found: NDArray[np.float64] = self._clean.post[first].double().cpu().numpy()
        return found

    def outcomes(
        self,
        edits: Sequence[Edit],
        edit: NDArray[np.int64],
        sequence: NDArray[np.int64],
        objective: Objective | None,
        *,
        greedy: bool,
    ) -> Answers:
        """``[N]`` each, of N pairs of an edit and a sequence, at least one."""
        pair, context, starts = self._contexts_of(sequence)
        # What rows of a context, or forwards of a sequence, have in common is shared in a batch.
        shared = context if self.rows is not None else sequence[pair]
        order = np.lexsort((context, edit[pair], shared))
        log_p, hits = np.empty(len(pair)), np.zeros(len(pair), dtype=bool)
        value = np.zeros(len(pair))
        tokens = self._tokens if objective is not None and objective.of_logits else None

        def evaluate(start: int, stop: int) -> None:
            at = order[start:stop]
            some, first, logits = self._evaluate(edits, edit[pair[at]], context[at], greedy, tokens)
            if first is not None:
                hits[at] = first.cpu().numpy()
            log_p[at] = some.double().cpu().numpy()
            if objective is not None:
                taken = log_p[at, None] if logits is None else logits.double().cpu().numpy()
                value[at] = weighted(self._weights[context[at]], taken)

        with guest(self.model, grad=False):
            in_batches(len(pair), self._max_rows, evaluate)
        every = np.logical_and.reduceat(hits, starts)
        return np.exp(np.add.reduceat(log_p, starts)), every, np.add.reduceat(value, starts)

    def _contexts_of(
        self, sequence: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All contexts of N sequences, of wrong answers those alone that are needed.

        Returns:
            Int64 ``[M]``, to which of the N each belongs; ``[M]``, itself; ``[N]``, their starts.
        """
        n_tokens = self._n_needed[sequence]
        starts = np.cumsum(n_tokens) - n_tokens
        of = np.repeat(np.arange(len(sequence)), n_tokens)
        token = np.arange(len(of)) - starts[of]
        first = np.cumsum(self._n_needed) - self._n_needed
        return of, self._needed[first[sequence[of]] + token], starts

    def _evaluate(
        self,
        edits: Sequence[Edit],
        edit: NDArray[np.int64],
        context: NDArray[np.int64],
        greedy: bool,
        tokens: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.rows is not None:
            try:
                return self._by_rows(self.rows, edits, edit, context, greedy, tokens)
            except SweepUnsupported as reason:
                self._stand_in(reason, self._warn)
        return forward_log_probabilities(
            self.layout,
            self.contexts,
            edits,
            (edit, context),
            self.positions,
            self._max_rows,
            self._upper,
            tokens,
        )

    @staticmethod
    def _by_rows(
        rows: RowEngine,
        edits: Sequence[Edit],
        edit: NDArray[np.int64],
        context: NDArray[np.int64],
        greedy: bool,
        tokens: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rows' answers, of which those that nothing edits must be the model's own."""
        whole = (rows, edits, edit, context)
        log_p, first, logits = row_log_probabilities(*whole, greedy=greedy, tokens=tokens)
        is_clean = np.array([len(one.neurons) == 0 for one in edits])[edit]
        if is_clean.any():
            own = torch.from_numpy(context[is_clean]).to(rows.contexts.ids.device)
            Check(rows, own).answer(log_p[torch.from_numpy(is_clean).to(log_p.device)])
        return log_p, first, logits

    def gate_slopes(self, places: Sequence[int], asked: Sequence[AskedSlopes]) -> list[Slopes]:
        """As :meth:`Prompts.gate_slopes`; ``places`` are the questions' sequences here."""
        gated, columns = joined([one.closed for one in asked])
        rows = [len(one.gates) for one in asked]
        gates = np.ones((sum(rows), len(gated.neurons)))
        ends = np.cumsum(rows)
        for one, own, end in zip(asked, columns, ends, strict=True):
            gates[end - len(one.gates) : end, own] = one.gates
        sequence = np.repeat(np.asarray(places), rows)
        log_p, slopes = np.empty(len(gates)), np.empty(gates.shape)

        def evaluate(start: int, stop: int) -> None:
            some = self._settings(gates[start:stop], sequence[start:stop])
            if self.rows is not None:
                value, slope = row_gates(self.rows, gated, some)
            else:
                whole = (self.model, self.layout, self.contexts)
                value, slope = forward_gates(*whole, gated, some, self.positions)
            log_p[start:stop] = value.double().cpu().numpy()
            slopes[start:stop] = slope.double().cpu().numpy()

        n_tokens = int(np.diff(self._starts, append=len(self._sequence))[places].max())
        each = n_tokens * (1 if self.rows is not None else self.contexts.ids.shape[1])
        with guest(self.model, grad=True):
            refuse_cut_gradients(self.layout, self.contexts.ids)
            in_batches(len(gates), max(1, self._max_rows // _BACKWARD // each), evaluate)
        parts = zip(np.split(log_p, ends[:-1]), np.split(slopes, ends[:-1]), columns, strict=True)
        return [(value, slope[:, own]) for value, slope, own in parts]

    def _settings(self, gates: NDArray[np.float64], sequence: NDArray[np.int64]) -> Settings:
        """Settings ``[R, n]`` of gates, each for all tokens of one sequence ``[R]``."""
        setting, context, _ = self._contexts_of(sequence)
        device = self.contexts.ids.device
        return Settings(
            torch.from_numpy(gates).to(device, self._clean.log_probability.dtype),
            torch.from_numpy(setting).to(device),
            torch.from_numpy(context).to(device),
        )

    def gated_activations(
        self, sequence: int, closed: Edit, gates: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """As :meth:`Prompts.gated_activations`."""
        gated = Gated(closed.neurons, closed.offset)
        device = self.contexts.ids.device
        chosen = torch.from_numpy(np.flatnonzero(self._sequence == sequence)).to(device)
        found = np.zeros((len(chosen), *gates.shape))
        if not len(closed.neurons):
            return found

        def evaluate(start: int, stop: int) -> None:
            some = torch.from_numpy(gates[start:stop]).to(device, self._clean.log_probability.dtype)
            if self.rows is not None:
                table = row_activations(self.rows, gated, some, chosen)
            else:
                whole = (self.model, self.layout, self.contexts)
                table = forward_activations(*whole, gated, some, chosen, self.positions)
            found[:, start:stop] = table.double().cpu().numpy()

        with guest(self.model, grad=False):
            in_batches(len(gates), max(1, self._max_rows // len(chosen)), evaluate)
        return found

    def as_model_is(self, lowest: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        every = torch.arange(len(self.contexts.ids), device=self.contexts.ids.device)
        whole = self.contexts.ids.shape[1]
        with guest(self.model, grad=False), self._upper.passes(lowest, every, whole):
            log_p, rank = token_log_probabilities(self.model, self.contexts)
        hits = np.logical_and.reduceat((rank == 1).cpu().numpy(), self._starts)
        return np.exp(self._sum(log_p.double().cpu().numpy()[None])[0]), hits

    def _sum(self, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        """From tokens ``[P, C]`` to sequences ``[P, B]``; contexts are in their order."""
        return np.add.reduceat(log_p, self._starts, axis=1)
