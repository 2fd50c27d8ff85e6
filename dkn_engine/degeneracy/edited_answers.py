"""Prompts that were read once and are asked again under many edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import Edit, nothing, require_inside
from dkn_engine.degeneracy.edits_by_forwards import forward_log_probabilities
from dkn_engine.degeneracy.edits_by_rows import row_log_probabilities
from dkn_engine.degeneracy.free_running import free_running
from dkn_engine.forward.causality import require_causal
from dkn_engine.forward.contexts import AnswerSequence, build_contexts
from dkn_engine.forward.lengths import length_groups
from dkn_engine.forward.patched_rows import RowEngine, SweepUnsupported
from dkn_engine.forward.prefill import prefill, token_log_probabilities
from dkn_engine.forward.row_check import checked_rows, warn_of_full_forwards
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import Layout


class Prompts:
    """The clean pass over a chunk of sequences, and their probabilities under edits.

    The probability of an answer is the product of its tokens' probabilities, each behind what the
    sequence holds before it, or, of a sequence that is ``free``, behind the edited model's own
    tokens.

    Args:
        model, layout: the decoder; it is left as it was found.
        sequences: of prompts and answers; at least one.
        positions: where edits act; see :class:`dkn_engine.FilterConfig`.
        backend: of the operations.
        warn: say so where rows cannot run and full forwards stand in; False if the caller has.
        max_rows: most rows, and most token positions of full forwards, in one batch.

    Raises:
        UnsupportedModelError: the model is not causal.

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
        max_rows: int = 1024,
    ) -> None:
        require_causal(layout)
        self.model, self.layout, self.positions = model, layout, positions
        self.sequences = tuple(sequences)
        self._free = {b: one for b, one in enumerate(sequences) if one.free is not None}
        self._batches: list[tuple[NDArray[np.int64], _Batch]] = []
        for group in length_groups(model, [len(s.ids) for s in sequences]):

            def read(start: int, stop: int, group: list[int] = group) -> None:
                index = np.array(group[start:stop])
                some = [sequences[i] for i in index]
                say = warn and not self.stands_in
                batch = _Batch(model, layout, some, positions, backend, say, max_rows)
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
        return len(self.probability)

    def _of(self) -> list[_Batch]:
        return [batch for _, batch in self._batches]

    def _joined(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """What was found of every batch, in the order of the sequences."""
        back = np.argsort(np.concatenate([index for index, _ in self._batches]))
        return np.concatenate(parts)[back]

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
        require_inside(edits, self.layout)
        wanted = np.arange(len(self)) if sequences is None else np.asarray(sequences, np.int64)
        table = np.zeros((len(edits), len(self)))
        every = np.zeros(table.shape, dtype=bool)
        free = [b for b in wanted.tolist() if b in self._free]
        others = np.setdiff1d(wanted, free)
        for index, batch in self._batches:
            mine = np.flatnonzero(np.isin(index, others))
            if len(mine):
                found = batch.outcomes(edits, mine, greedy=greedy)
                table[:, index[mine]], every[:, index[mine]] = found
        whole = (self.model, self.layout)
        for b in free:
            run = free_running(*whole, self._free[b], edits, self.positions)
            table[:, b], every[:, b] = run
        return table[:, wanted], every[:, wanted]

    def as_model_is(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """As :meth:`outcomes`, ``[B]`` each, by full forwards of the model as it is by now."""
        probability, hits = zip(*(batch.as_model_is() for batch in self._of()), strict=True)
        return self._joined(probability), self._joined(hits)


class _Batch:
    """Prompts that are padded to one length; see :class:`Prompts`."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        sequences: Sequence[AnswerSequence],
        positions: str,
        backend: str,
        warn: bool,
        max_rows: int,
    ) -> None:
        self.model, self.layout, self.positions = model, layout, positions
        self.sequences, self._max_rows = tuple(sequences), max_rows
        self.stands_in = False
        self.contexts = build_contexts(sequences, next(model.parameters()).device)
        with guest(model, grad=False):
            self._clean = prefill(model, layout, self.contexts)
            self.rows = self._engine(backend, warn)
        self._sequence = self.contexts.sequence.cpu().numpy()
        self._starts = np.flatnonzero(np.diff(self._sequence, prepend=-1))
        log_p = self._clean.log_probability.double().cpu().numpy()
        self.probability: NDArray[np.float64] = np.exp(self._sum(log_p[None])[0])
        first = (self.contexts.token == 0).cpu().numpy()
        self.rank: NDArray[np.int64] = self._clean.rank.cpu().numpy()[first]

    def _engine(self, backend: str, warn: bool) -> RowEngine | None:
        single = bool((torch.bincount(self.contexts.sequence) == 1).all())
        if self.positions == "all" or (self.positions == "answer_all" and not single):
            return None
        try:
            return checked_rows(self.model, self.layout, self.contexts, self._clean, backend)
        except SweepUnsupported as reason:
            self.stands_in = True
            if warn:
                warn_of_full_forwards(self.model, reason, stacklevel=7)
            return None

    def first_activations(self) -> NDArray[np.float64]:
        first = self.contexts.token == 0
        found: NDArray[np.float64] = self._clean.post[first].double().cpu().numpy()
        return found

    def outcomes(
        self, edits: Sequence[Edit], wanted: NDArray[np.int64], *, greedy: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """``[P, n]`` each, of the n sequences ``wanted``; at least one."""
        mine = np.flatnonzero(np.isin(self._sequence, wanted))
        chosen = torch.from_numpy(mine).to(self.contexts.ids.device)
        step = max(1, self._max_rows // len(mine))
        table = np.zeros((len(edits), len(self._sequence)))
        hits = np.zeros(table.shape, dtype=bool)

        def evaluate(start: int, stop: int) -> None:
            log_p, first = self._evaluate(edits[start:stop], chosen, greedy)
            if first is not None:
                hits[start:stop, mine] = first.cpu().numpy()
            table[start:stop, mine] = log_p.double().cpu().numpy()

        with guest(self.model, grad=False):
            in_batches(len(edits), step, evaluate)
        every = np.logical_and.reduceat(hits, self._starts, axis=1)
        return np.exp(self._sum(table))[:, wanted], every[:, wanted]

    def _evaluate(
        self, edits: Sequence[Edit], chosen: Tensor, greedy: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.rows is not None:
            return row_log_probabilities(self.rows, edits, chosen, greedy=greedy)
        return forward_log_probabilities(
            self.model,
            self.layout,
            self.contexts,
            edits,
            chosen,
            self.positions,
            self._max_rows,
        )

    def as_model_is(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        with guest(self.model, grad=False):
            log_p, rank = token_log_probabilities(self.model, self.contexts)
        hits = np.logical_and.reduceat((rank == 1).cpu().numpy(), self._starts)
        return np.exp(self._sum(log_p.double().cpu().numpy()[None])[0]), hits

    def _sum(self, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
        """From tokens ``[P, C]`` to sequences ``[P, B]``; contexts are in their order."""
        return np.add.reduceat(log_p, self._starts, axis=1)
