"""The whole way in one call: facts and a model in, degenerate knowledge neurons out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dkn_engine.attribution.chunk import ChunkScores, attribute_chunk
from dkn_engine.attribution.contexts import AnswerSequence
from dkn_engine.attribution.selection import Selection, select_neurons
from dkn_engine.attribution.sequences import encode_sequence, encode_sequences
from dkn_engine.config import Config
from dkn_engine.connections import connection_rows
from dkn_engine.degeneracy.examine import MOST_COMPONENTS, examine
from dkn_engine.degeneracy.prompts import Prompts
from dkn_engine.degeneracy.reference import Reference, build_reference, knows
from dkn_engine.demo_model import FOLDER
from dkn_engine.errors import FactError, UserError
from dkn_engine.info import versions
from dkn_engine.layout import Layout, find_layout
from dkn_engine.models import model_fingerprint
from dkn_engine.store import RunDirectory
from dkn_engine.tokens import mask_token_id
from dkn_engine.topology.find import find_candidates
from dkn_engine.types import Component, Fact, FactResult

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


def find_dkns(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    config: Config | None = None,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> list[FactResult]:
    """The degenerate knowledge neurons of every fact, in the order of the facts.

    Args, errors and sources: see :func:`iter_dkns`.
    """
    return list(iter_dkns(model, tokenizer, facts, config, out, progress=progress))


def iter_dkns(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    config: Config | None = None,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[FactResult]:
    """Results one by one, in the order of the facts, a chunk of facts at a time.

    A fact that cannot be used is not fatal: its result has the status ``skipped`` (it cannot be
    encoded) or ``error`` (the model gives no finite probability) and a reason. A fact that the
    model does not know has the status ``not_known`` and no neurons.

    Args:
        model: a causal decoder of transformers; it is left as it was found.
        tokenizer: the model's.
        facts: with unique ids.
        config: all choices; None for :class:`dkn_engine.Config`'s measured defaults.
        out: run directory, created or continued: what is there is not computed again. None keeps
            nothing on disk.
        progress: called with (facts done, facts of the run) after every chunk.

    Raises:
        UnsupportedModelError: the model is not a causal decoder that the engine knows.
        RunDirectoryError: ``out`` belongs to another configuration, model or list of facts.
        UserError: ``facts`` have no unique ids, or an option does not fit the model.
        BackendError: a backend asked for by name cannot run.

    Source:
        Chen et al., Cracking Factual Knowledge (arXiv 2402.13731), sections 3 and 4.
    """
    facts = list(facts)
    config = Config() if config is None else config
    if config.attribution.baseline == "given":
        raise UserError("baseline must be 'masked' or 'zero' for DKNs; got 'given'")
    _require_unique(facts)
    run = _Run(model, tokenizer, find_layout(model), facts, config)
    if out is None:
        return _in_memory(run, progress)
    return _on_disk(run, Path(out), progress)


def _require_unique(facts: Sequence[Fact]) -> None:
    seen: set[str] = set()
    for fact in facts:
        if not isinstance(fact, Fact):
            raise TypeError(f"facts must be dkn_engine.Fact; got {type(fact).__name__}")
        if fact.id in seen:
            raise UserError(f"fact ids must be unique; got {fact.id!r} twice")
        seen.add(fact.id)


def _in_memory(run: _Run, progress: Progress | None) -> Iterator[FactResult]:
    size = run.config.facts_per_chunk
    for start in range(0, len(run.facts), size):
        yield from run.chunk(run.facts[start : start + size])
        if progress is not None:
            progress(min(start + size, len(run.facts)), len(run.facts))


def _on_disk(run: _Run, out: Path, progress: Progress | None) -> Iterator[FactResult]:
    with RunDirectory.open(
        out,
        config=run.config,
        model_fingerprint=model_fingerprint(run.model),
        model_name=_name(run.model),
        facts=run.facts,
        versions=versions(),
    ) as directory:
        there, done = directory.done_chunks(), 0
        for i in range(directory.n_chunks):
            chunk = directory.chunk_facts(i)
            if i not in there:
                directory.write_chunk(i, run.chunk(chunk))
            done += len(chunk)
            if progress is not None:
                progress(done, len(run.facts))
            # Also fresh results are read back, so that a run gives what a later reader will see.
            yield from directory.read_chunk(i)


def _name(model: nn.Module) -> str:
    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return "demo (SmolLM2-135M-Instruct)" if Path(name).name == FOLDER else str(name)


@dataclass(frozen=True, eq=False)
class _Task:
    """A fact of a chunk that goes through all stages."""

    fact: Fact
    answer: str
    sequence: AnswerSequence


class _Run:
    """The stages of a run, one chunk of facts at a time."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout,
        facts: Sequence[Fact],
        config: Config,
    ) -> None:
        self.model, self.tokenizer, self.layout = model, tokenizer, layout
        self.facts, self.config = facts, config
        masked = config.attribution.baseline == "masked"
        self._mask_id = mask_token_id(tokenizer) if masked else None
        self._reference: Reference | None = None
        self._has_reference = False
        self._said = False  # that full forwards stand in for rows

    @property
    def reference(self) -> Reference | None:
        """Made when it is first needed: a run that is already complete needs none."""
        if not self._has_reference:
            self._reference = build_reference(
                self.model, self.tokenizer, self.layout, self.facts, self.config
            )
            self._has_reference = True
        return self._reference

    def chunk(self, facts: Sequence[Fact]) -> list[FactResult]:
        """Results of a chunk, in the order of its facts."""
        results: dict[str, FactResult] = {}
        tasks: list[_Task] = []
        for fact in facts:
            try:
                tasks.append(self._task(fact))
            except FactError as error:
                results[fact.id] = _without(fact, "skipped", str(error))
        if tasks:
            for result in self._known(tasks):
                results[result.fact_id] = result
        return [results[fact.id] for fact in facts]

    def _task(self, fact: Fact) -> _Task:
        encoded = {fact.answer: self._encode(fact, fact.answer)}
        for alias in fact.aliases if self.config.facts.aliases else ():
            # One of several spellings may be of no use; the answer itself must be.
            with contextlib.suppress(FactError):
                encoded[alias] = self._encode(fact, alias)
        answers = list(encoded)
        best = 0
        if len(answers) > 1:
            best = int(np.argmax(self._prompts(list(encoded.values())).probability))
        return _Task(fact, answers[best], encoded[answers[best]])

    def _encode(self, fact: Fact, answer: str) -> AnswerSequence:
        return encode_sequence(
            self.model,
            self.tokenizer,
            fact.prompt,
            answer,
            config=self.config.facts,
            fact_id=fact.id,
        )

    def _prompts(self, sequences: Sequence[AnswerSequence]) -> Prompts:
        found = Prompts(
            self.model,
            self.layout,
            sequences,
            positions=self.config.filter.positions,
            backend=self.config.attribution.backend,
            warn=not self._said,
        )
        self._said |= found.stands_in
        return found

    def _known(self, tasks: Sequence[_Task]) -> Iterator[FactResult]:
        """Sort out what the model does not know; attribute and examine the rest."""
        prompts = self._prompts([t.sequence for t in tasks])
        known = knows(prompts, self.config.filter)
        chosen = []
        for i, task in enumerate(tasks):
            p, rank = float(prompts.probability[i]), int(prompts.rank[i])
            if not np.isfinite(p):
                reason = f"fact {task.fact.id!r}: the model gives the answer the probability {p}"
                yield _without(task.fact, "error", reason, answer=task.answer)
            elif not known[i]:
                reason = f"rank {rank}, p {p:.2g}"
                yield _without(task.fact, "not_known", reason, answer=task.answer, p=p, rank=rank)
            else:
                chosen.append(i)
        if not chosen:
            return
        used = [self._used(tasks[i]) for i in chosen]
        flat = [sequence for group in used for sequence in group]
        scores = attribute_chunk(
            self.model, self.layout, flat, self.config.attribution, mask_id=self._mask_id
        )
        start = 0
        for i, group in zip(chosen, used, strict=True):
            span = slice(start, start + len(group))
            start += len(group)
            yield self._result(tasks[i], prompts, i, scores, span)

    def _used(self, task: _Task) -> list[AnswerSequence]:
        """The prompt, and the paraphrases that help to find its neurons."""
        n = self.config.selection.n_paraphrases
        return [task.sequence, *self._paraphrases(task, slice(0, n))]

    def _paraphrases(self, task: _Task, which: slice) -> list[AnswerSequence]:
        texts = [(p, task.answer) for p in task.fact.paraphrases[which]]
        return encode_sequences(self.model, self.tokenizer, texts, config=self.config.facts)

    def _result(
        self, task: _Task, prompts: Prompts, i: int, scores: ChunkScores, span: slice
    ) -> FactResult:
        config, fact = self.config, task.fact
        table = scores.scores[span]
        if not np.isfinite(table).all():
            reason = f"fact {fact.id!r}: attribution gives scores that are not finite"
            return _without(fact, "error", reason, answer=task.answer)
        selection = select_neurons(table, config.selection)
        components, reason = self._candidates(selection)
        held_out = self._paraphrases(task, slice(config.selection.n_paraphrases, None))
        found = examine(
            prompts,
            i,
            components,
            selection.neurons,
            fact,
            config.filter,
            config.seed,
            released=task.sequence,
            paraphrases=self._prompts(held_out) if held_out and components else None,
            reference=self.reference,
        )
        return FactResult(
            fact_id=fact.id,
            status="ok",
            reason=reason,
            prompt=fact.prompt,
            answer=task.answer,
            relation=fact.relation,
            probability=float(prompts.probability[i]),
            rank=int(prompts.rank[i]),
            neurons=selection.neurons,
            scores=selection.scores,
            borderline=selection.borderline,
            **_fields(found),
            convergence_delta=scores.convergence_delta[span][0],
            n_points=scores.n_points[span].sum(0, dtype=np.int32),
            converged=bool(scores.converged[span].all()),
            path=scores.path,
        )

    def _candidates(self, selection: Selection) -> tuple[tuple[Component, ...], str]:
        w_out, w_in = connection_rows(self.layout, selection.neurons, self.config.topology)
        found = find_candidates(selection.neurons, w_out, w_in, self.config.topology)
        if len(found) <= MOST_COMPONENTS:
            return found, ""
        return found[:MOST_COMPONENTS], f"the first {MOST_COMPONENTS} of {len(found)} components"


def _fields(found: Any) -> dict[str, Any]:
    """The fields of a frozen record by name."""
    return {name: getattr(found, name) for name in found.__dataclass_fields__}


def _without(
    fact: Fact,
    status: Any,
    reason: str,
    *,
    answer: str | None = None,
    p: float = float("nan"),
    rank: int = 0,
) -> FactResult:
    """The result of a fact that has no neurons, and why."""
    return FactResult(
        fact_id=fact.id,
        status=status,
        reason=reason,
        prompt=fact.prompt,
        answer=fact.answer if answer is None else answer,
        relation=fact.relation,
        probability=p,
        rank=rank,
    )
