"""The stages of a run over one chunk of facts: from facts to results, or to a chunk's tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dkn_engine.attribution.attribute_facts import given_baselines
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores, slowest
from dkn_engine.config import Config
from dkn_engine.degeneracy.choices import Located
from dkn_engine.degeneracy.component_choice import choose_components
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.functional_filter import Examinee, examine_chunk
from dkn_engine.degeneracy.objectives import Objective
from dkn_engine.degeneracy.reference_facts import Reference, knows, read_reference
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts.load import load_facts
from dkn_engine.forward.batch_rows import most_edits
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence, encode_sequences, wrong_answers_of
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import mask_token_id
from dkn_engine.run.tasks import Task
from dkn_engine.selection import select_neurons
from dkn_engine.store.tables import chunk_files
from dkn_engine.types import (
    Answered,
    AttributionQuality,
    Fact,
    FactResult,
    Selection,
    Status,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


Tell = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class _Task:
    """A fact of a chunk that goes through all stages.

    Attributes:
        fact: as it was given.
        answer: the spelling that is taken.
        sequence: of prompt and answer; ``place``: its index among the chunk's prompts.
        paraphrases: those that may be used for finding, once they have been encoded.
    """

    fact: Fact
    answer: str
    sequence: AnswerSequence
    place: int
    paraphrases: Sequence[AnswerSequence] = ()


# A fact with its neurons and how well they were attributed.
_Selected = tuple[_Task, Selection, AttributionQuality]


def filling_facts(config: Config) -> list[Fact]:
    """Packaged facts for the controls of runs that have too few of their own; none if unwanted."""
    return load_facts("demo") if config.filter.fill_reference else []


class Stages:
    """All stages for one model, one chunk of facts at a time.

    ``sample`` are facts for controls on other facts, in the order in which they are tried;
    ``baselines`` are those of ``baseline="given"``, for all facts or by their places in the run;
    ``tell`` takes what is being done with a chunk, and how many facts the stages before it count
    for, each as much as another.

    Raises:
        UnsupportedModelError: the model is none that the engine knows.
        UserError: the tokenizer has no token that could mask another.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sample: Sequence[Fact],
        config: Config,
        tell: Tell | None = None,
        baselines: ArrayLike | None = None,
    ) -> None:
        self.model, self.tokenizer, self.layout = model, tokenizer, find_layout(model)
        self.config, self._sample = config, sample
        self._baselines = given_baselines(baselines, config.attribution, self.layout)
        scoring = config.attribution
        masked = scoring.baseline == "masked"
        self._mask_id = mask_token_id(tokenizer, scoring.mask_token) if masked else None
        self._tell = (lambda words, facts: None) if tell is None else tell
        self._said = False  # that full forwards stand in for rows

    @cached_property
    def reference(self) -> Reference | None:
        """Made when it is first needed: a run that is already complete needs none."""
        whole, others = (self.model, self.tokenizer, self.layout), filling_facts(self.config)
        reference = read_reference(*whole, self._sample, self.config, others)
        if reference is None and self.config.filter.suppress_value == "mean":
            raise UserError(
                "filter.suppress_value='mean' needs a fact that can be encoded, and that the model "
                "reads to finite activations, to take means over; none of the "
                f"{len(self._sample)} tried is one (filter.fill_reference=true adds packaged ones)"
            )
        return reference

    def files(self, task: Task) -> dict[str, bytes]:
        """A chunk's tables as Parquet files by table name."""
        return chunk_files(self.of_task(task), task.positions, self.config.hash)

    def of_task(self, task: Task) -> list[FactResult]:
        """Results of a run's chunk, in the order of its facts."""
        return self.results(task.facts, positions=task.positions)

    def results(
        self,
        facts: Sequence[Fact],
        located: Mapping[str, NDArray[np.int32]] | None = None,
        positions: Sequence[int] = (),
    ) -> list[FactResult]:
        """Results of a chunk, in the order of its facts.

        ``located`` are neurons ``[n, 2]`` by fact id that stand in for those of attribution;
        ``positions`` the facts' places in the run, which baselines of their own go by.
        """
        self._say(0, "asking", len(facts))
        results: dict[str, FactResult] = {}
        spelled: list[tuple[Fact, dict[str, AnswerSequence]]] = []
        for fact in facts:
            try:
                spelled.append((fact, self._spellings(fact, scored=located is None)))
            except FactError as error:
                results[fact.id] = _without(fact, "skipped", str(error))
        if spelled:
            prompts = self._prompts([s for _, encoded in spelled for s in encoded.values()])
            places = dict(zip((fact.id for fact in facts), positions, strict=False))
            for result in self._known(_best(spelled, prompts), prompts, located, places):
                results[result.fact_id] = result
        return [results[fact.id] for fact in facts]

    def _say(self, before: int, words: str, n: int) -> None:
        """Tell that a stage of a chunk begins, with n facts, behind so many others."""
        self._tell(f"{words} {n} {'fact' if n == 1 else 'facts'}", n * before / 3)

    def _spellings(self, fact: Fact, scored: bool) -> dict[str, AnswerSequence]:
        """The answer, encoded, and those aliases that can be, if they count.

        Each with the wrong answers that the objective takes off, which a fact must have to be
        ``scored``.
        """
        wrong = self._wrong_answers(fact, needed=scored)
        encoded = {fact.answer: self._encode(fact, fact.answer, wrong)}
        for alias in fact.aliases if self.config.facts.aliases else ():
            # One of several spellings may be of no use; the answer itself must be.
            with contextlib.suppress(FactError):
                encoded[alias] = self._encode(fact, alias, wrong)
        return encoded

    def _wrong_answers(self, fact: Fact, needed: bool = False) -> Sequence[str]:
        """Those that the objective takes off; a fact may have none unless they are ``needed``."""
        has_some = needed or fact.wrong_answers
        return wrong_answers_of(fact, self.config.attribution) if has_some else ()

    def _encode(self, fact: Fact, answer: str, wrong: Sequence[str]) -> AnswerSequence:
        return encode_sequence(
            self.model,
            self.tokenizer,
            fact.prompt,
            answer,
            config=self.config.facts,
            fact_id=fact.id,
            wrong_answers=wrong,
        )

    def _prompts(self, sequences: Sequence[AnswerSequence]) -> Prompts:
        found = Prompts(
            self.model,
            self.layout,
            sequences,
            positions=self.config.filter.positions,
            backend=self.config.attribution.backend,
            warn=not self._said,
            max_rows=most_edits(self.config.attribution, self.model, self.layout),
            objective=Objective.of(self.config.attribution),
        )
        self._said |= found.stands_in
        return found

    def _known(
        self,
        tasks: Sequence[_Task],
        prompts: Prompts,
        located: Mapping[str, NDArray[np.int32]] | None,
        places: Mapping[str, int],
    ) -> Iterator[FactResult]:
        """Sort out what the model does not know; attribute (unless located), examine the rest."""
        known = knows(prompts, self.config.filter)
        chosen = []
        for task in tasks:
            p, rank = float(prompts.probability[task.place]), int(prompts.rank[task.place])
            if not np.isfinite(p):
                reason = f"fact {task.fact.id!r}: the model gives the answer the probability {p}"
                yield _without(task.fact, "error", reason, answer=task.answer)
            elif not known[task.place]:
                reason = f"rank {rank}, p {p:.2g}"
                yield _without(task.fact, "not_known", reason, answer=task.answer, p=p, rank=rank)
            else:
                chosen.append(task)
        if not chosen:
            return
        chosen = [replace(t, paraphrases=self._to_find_by(t, located is None)) for t in chosen]
        if located is not None:
            selected = [(t, _given(located[t.fact.id]), AttributionQuality()) for t in chosen]
            yield from self._examined(selected, prompts)
            return
        self._say(1, "attributing", len(chosen))
        used = [[task.sequence, *task.paraphrases] for task in chosen]
        flat = [sequence for group in used for sequence in group]
        scores = attribute_chunk(
            self.model,
            self.layout,
            flat,
            self.config.attribution,
            mask_id=self._mask_id,
            baselines=self._given_to(chosen, [len(group) for group in used], places),
        )
        ends = np.cumsum([len(group) for group in used]).tolist()
        spans = [slice(end - len(group), end) for end, group in zip(ends, used, strict=True)]
        yield from self._results(chosen, prompts, scores, spans)

    def _to_find_by(self, task: _Task, scored: bool) -> list[AnswerSequence]:
        """A fact's paraphrases that attribution or a search may use; none if neither does."""
        if not (scored or self.config.topology.clustering == "covering"):
            return []
        wrong = self._wrong_answers(task.fact) if scored else ()
        return self._paraphrases(task, slice(0, self.config.selection.n_paraphrases), wrong)

    def _given_to(
        self, tasks: Sequence[_Task], n_prompts: Sequence[int], places: Mapping[str, int]
    ) -> Tensor | None:
        """Baselines ``[n, L, F]`` of the facts' prompts, of a fact all alike; None if not given."""
        if self._baselines is None:
            return None
        given = torch.from_numpy(np.array(self._baselines))
        if given.ndim == 2:
            return given.expand(sum(n_prompts), -1, -1)
        rows = torch.tensor([places[task.fact.id] for task in tasks])
        return given[rows.repeat_interleave(torch.tensor(n_prompts))]

    def _paraphrases(
        self, task: _Task, which: slice, wrong: Sequence[str] = ()
    ) -> list[AnswerSequence]:
        texts = [(p, task.answer) for p in task.fact.paraphrases[which]]
        return encode_sequences(
            self.model,
            self.tokenizer,
            texts,
            config=self.config.facts,
            wrong_answers=wrong,
        )

    def _results(
        self,
        tasks: Sequence[_Task],
        prompts: Prompts,
        scores: ChunkScores,
        spans: Sequence[slice],
    ) -> Iterator[FactResult]:
        """Select each fact's neurons, by its span of the scores, and examine all facts together."""
        selected: list[_Selected] = []
        for task, span in zip(tasks, spans, strict=True):
            table = scores.scores[span]
            if np.isfinite(table).all():
                selection = select_neurons(table, self.config.selection, self.layout.widths)
                selected.append((task, selection, _quality(scores, span)))
            else:
                reason = f"fact {task.fact.id!r}: attribution gives scores that are not finite"
                yield _without(task.fact, "error", reason, answer=task.answer)
        yield from self._examined(selected, prompts)

    def _examined(self, selected: Sequence[_Selected], prompts: Prompts) -> Iterator[FactResult]:
        """Group neurons of each fact, and examine all facts' components together."""
        self._say(2, "suppressing in", len(selected))
        located, used = self._located(selected)
        choices = choose_components(prompts, located, self.config, self._means(located), used)
        found, examinees = [], []
        texts: list[AnswerSequence] = []
        for (task, selection, quality), choice in zip(selected, choices, strict=True):
            if isinstance(choice, FactError):
                yield _without(task.fact, "error", str(choice), answer=task.answer)
                continue
            held_out = self._held_out(task)
            index = range(len(texts), len(texts) + len(held_out))
            texts += held_out
            sets = choice.components, selection.neurons, index
            examinees.append(Examinee(task.fact, task.place, *sets, choice.null))
            found.append((task, selection, choice, quality))
        every = examine_chunk(
            prompts,
            examinees,
            self.config,
            paraphrases=self._prompts(texts) if texts else None,
            reference=self.reference if examinees else None,
        )
        for (task, selection, choice, quality), one, degeneracy in zip(
            found, examinees, every, strict=True
        ):
            fact = task.fact
            if isinstance(degeneracy, FactError):  # A suppressed model's own text may be too long.
                yield _without(fact, "error", str(degeneracy), answer=task.answer)
                continue
            p, rank = float(prompts.probability[one.sequence]), int(prompts.rank[one.sequence])
            answered = Answered(
                fact.id, "ok", choice.remark, fact.prompt, task.answer, fact.relation, p, rank
            )
            selection = replace(selection, connection_weights=choice.connection_weights)
            interactions = choice.interactions.astype(np.float32)
            degeneracy = replace(degeneracy, pair_interactions=interactions)
            yield FactResult.of(answered, selection, degeneracy, quality)

    def _held_out(self, task: _Task) -> list[AnswerSequence]:
        held_out = slice(self.config.selection.n_paraphrases, None)
        return self._paraphrases(task, held_out, self._wrong_answers(task.fact))

    def _located(self, selected: Sequence[_Selected]) -> tuple[list[Located], Prompts | None]:
        """The facts with their neurons, and the paraphrases that a search may ask too.

        Of those, the ones that the model answers.
        """
        if self.config.topology.clustering != "covering":
            return [Located(task.fact, task.place, found) for task, found, _ in selected], None
        texts = [task.paraphrases for task, _, _ in selected]
        flat = [sequence for some in texts for sequence in some]
        used = self._prompts(flat) if flat else None
        known = np.zeros(0, dtype=bool) if used is None else knows(used, self.config.filter)
        ends = np.cumsum([len(some) for some in texts]).tolist()
        indices = [range(end - len(some), end) for end, some in zip(ends, texts, strict=True)]
        return [
            Located(task.fact, task.place, found, [i for i in index if known[i]])
            for (task, found, _), index in zip(selected, indices, strict=True)
        ], used

    def _means(self, located: Sequence[Located]) -> NDArray[np.float64] | None:
        """What suppressed activations become ``[L, F]``; None for zero, or without facts."""
        if self.config.filter.suppress_value != "mean" or not located:
            return None
        assert self.reference is not None  # or it had raised
        return self.reference.means


def _best(
    spelled: Sequence[tuple[Fact, dict[str, AnswerSequence]]], prompts: Prompts
) -> list[_Task]:
    """Each fact with its most probable spelling; the prompts are those of all, in order."""
    tasks, first = [], 0
    for fact, encoded in spelled:
        # What has no probability is taken only where no spelling has one.
        p = prompts.probability[first : first + len(encoded)]
        best = int(np.argmax(np.where(np.isfinite(p), p, -1.0)))
        answer = list(encoded)[best]
        tasks.append(_Task(fact, answer, encoded[answer], first + best))
        first += len(encoded)
    return tasks


def _given(neurons: NDArray[np.int32]) -> Selection:
    """Neurons found elsewhere, whose scores are not known."""
    return Selection(neurons, np.full(len(neurons), np.nan, dtype=np.float32))


def _quality(scores: ChunkScores, span: slice) -> AttributionQuality:
    """How well a fact was attributed, whose prompts are a span of the chunk's."""
    return AttributionQuality(
        convergence_delta=scores.convergence_delta[span][0],
        n_points=scores.n_points[span].sum(0, dtype=np.int32),
        converged=bool(scores.converged[span].all()),
        path=slowest(scores.paths[span]),
    )


def _without(
    fact: Fact,
    status: Status,
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
