"""Prompts of one clean pass, and what edits make of their answers: by rows, or by full forwards."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import Edit
from dkn_engine.degeneracy.edits_by_forwards import forward_log_probabilities
from dkn_engine.degeneracy.edits_by_rows import row_log_probabilities
from dkn_engine.degeneracy.gates import Gated, Settings, forward_gates, joined, row_gates
from dkn_engine.degeneracy.influences import forward_activations, row_activations
from dkn_engine.degeneracy.objectives import Objective, Reading, tables, weighted
from dkn_engine.degeneracy.questions import Answers, AskedSlopes, Slopes
from dkn_engine.forward.contexts import build_contexts
from dkn_engine.forward.encoder_states import with_states
from dkn_engine.forward.gradient_check import refuse_cut_gradients
from dkn_engine.forward.patched_rows import RowEngine, SweepUnsupported
from dkn_engine.forward.prefill import prefill, token_log_probabilities
from dkn_engine.forward.row_check import Check, rows_tried_once, warn_of_full_forwards
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.forward.upper_layers import UpperLayers
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import Layout

# A backward pass holds every layer's activations of a row: so many times what a row holds else.
_BACKWARD = 4


class PromptBatch:
    """Prompts that are padded to one length; see :mod:`dkn_engine.degeneracy.edited_answers`."""

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

    def acting_at(self, positions: str) -> PromptBatch:
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
        each = n_tokens * (1 if self.rows is not None else self.contexts.n_read)
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
