"""Facts of a run against which single facts are controlled: unrelated answers, mean activations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.objectives import Objective
from dkn_engine.errors import FactError
from dkn_engine.forward.batch_rows import most_edits
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence, wrong_answers_of
from dkn_engine.models.layout import Layout
from dkn_engine.seeds import generator
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

POOL = 32
SAMPLE = 2 * POOL  # facts that are tried, since some may be of no use
ENOUGH = 8  # With fewer usable facts in a run others fill up, if there are any to do so.


@dataclass(frozen=True, eq=False)
class Reference:
    """A fixed sample of a run's facts, read once.

    Attributes:
        facts: in the order of ``prompts``.
        prompts: their clean pass.
        known: bool ``[n]``, whether the model knows each.
        means: float64 ``[L, F]``, mean activation where their first answer tokens are predicted.
        n_filled: how many of the facts, the last ones, are not of the run.
    """

    facts: tuple[Fact, ...]
    prompts: Prompts
    known: NDArray[np.bool_]
    means: NDArray[np.float64]
    n_filled: int = 0

    @property
    def is_enough(self) -> bool:
        """Whether its mean activations are of enough facts to be more than those of one fact."""
        return len(self.facts) >= ENOUGH

    def unrelated(self, fact: Fact, n: int, rng: np.random.Generator) -> list[int]:
        """Up to ``n`` known facts with another answer and subject, ascending indices.

        Facts of other relations come first; those of the same one only if there are not enough.
        """
        others = [
            i
            for i, other in enumerate(self.facts)
            if self.known[i] and other.id != fact.id and _apart(fact, other)
        ]
        shuffled = [others[i] for i in rng.permutation(len(others))]
        shuffled.sort(key=lambda i: fact.relation == self.facts[i].relation)
        return sorted(shuffled[:n])


def build_reference(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    facts: Sequence[Fact],
    config: Config,
    others: Sequence[Fact] = (),
) -> Reference | None:
    """The reference facts of a run, from its facts and seed; None if none can be used.

    ``others`` fill up where fewer than :data:`ENOUGH` of the run's can be used.
    """
    sample = [facts[i] for i in reference_order(len(facts), config.seed)]
    return read_reference(model, tokenizer, layout, sample, config, others)


def reference_order(n: int, seed: int) -> list[int]:
    """Which of ``n`` facts are tried as reference facts, and in which order."""
    order: list[int] = generator(seed, "reference").permutation(n)[:SAMPLE].tolist()
    return order


def read_reference(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    sample: Sequence[Fact],
    config: Config,
    others: Sequence[Fact] = (),
) -> Reference | None:
    """As :func:`build_reference`, from the facts of :func:`reference_order`, in that order.

    A fact of which the model gives anything but finite numbers would make all means the like, so
    that another one takes its place.
    """
    asked: dict[str, Any] = {
        "positions": config.filter.positions,
        "backend": config.attribution.backend,
        "warn": False,  # The run's own prompts come first, and say it.
        "max_rows": most_edits(config.attribution, model, layout),
        "objective": Objective.of(config.attribution),
    }
    spoilt: set[str] = set()
    while True:
        chosen, n_own = _chosen(model, tokenizer, sample, config, others, spoilt)
        if not chosen:
            return None
        facts, sequences = zip(*chosen, strict=True)
        prompts = Prompts(model, layout, sequences, **asked)
        activations = prompts.first_activations()
        usable = np.isfinite(activations).all((1, 2)) & np.isfinite(prompts.probability)
        if usable.all():
            break
        spoilt |= {fact.id for fact, good in zip(facts, usable, strict=True) if not good}
    means: NDArray[np.float64] = activations.mean(0)
    return Reference(facts, prompts, knows(prompts, config.filter), means, len(facts) - n_own)


def _chosen(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sample: Sequence[Fact],
    config: Config,
    others: Sequence[Fact],
    spoilt: Collection[str],
) -> tuple[list[tuple[Fact, AnswerSequence]], int]:
    """The facts to read, which can be encoded and are not ``spoilt``; how many are the run's."""
    chosen: dict[str, tuple[Fact, AnswerSequence]] = {}

    def fill(some: Sequence[Fact], limit: int) -> None:
        for fact in some:
            if len(chosen) >= limit:
                return
            if fact.id in spoilt:
                continue
            wrong = wrong_answers_of(fact, config.attribution) if fact.wrong_answers else ()
            whole = (model, tokenizer, fact.prompt, fact.answer)
            try:
                sequence = encode_sequence(*whole, config=config.facts, wrong_answers=wrong)
            except FactError:
                continue
            chosen.setdefault(fact.id, (fact, sequence))

    fill(sample, POOL)
    n_own = len(chosen)
    fill(others, ENOUGH)
    return [*chosen.values()], n_own


def knows(prompts: Prompts, config: FilterConfig) -> NDArray[np.bool_]:
    """Which prompts the model answers: rank 1 (if required) and a probability that is enough."""
    likely = prompts.probability >= config.min_probability
    return likely & (prompts.rank == 1) if config.require_rank_1 else likely


def _apart(fact: Fact, other: Fact) -> bool:
    same_subject = fact.subject is not None and fact.subject == other.subject
    return fact.answer != other.answer and not same_subject
