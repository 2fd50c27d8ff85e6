"""What is asked before and after each training: new facts, old ones, new ones in other words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dkn_engine.analysis.experiments.evolvability.answers import read_answers
from dkn_engine.analysis.experiments.evolvability.rephrase import rephrase
from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts.given import Facts, fact_list
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# The trained facts, those known before, and the trained ones in other words.
Q_NEW, Q_OLD, Q_AU = "Q_new", "Q_old", "Q_au"
Answer = dict[str, dict[str, tuple[float, float]]]  # query, fact: greedy match and probability


class Asked:
    """The questions, encoded once."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        new_facts: Facts | None,
        old: Sequence[Fact],
        n_rephrased: int,
    ) -> None:
        new = fact_list("demo-new" if new_facts is None else new_facts)
        _require_distinct(new)
        self._encode = partial(encode_sequence, model, tokenizer, config=FactsConfig())
        asked = self._as_they_are(new)
        answers = read_answers(model, [s for _, s in asked])
        # One loss that is no number would make every weight of a training the like.
        read = np.isfinite(answers.probability)
        known = answers.greedy & read
        is_new = read & ~known
        self.new = [f for f, yes in zip(new, is_new, strict=True) if yes]
        self.n_known, self.n_spoilt, self.n_unusable = int(known.sum()), int((~read).sum()), 0
        if not self.new:
            raise UserError(
                "new_facts must hold a fact that the model does not answer; it answers "
                f"{self.n_known} of the {len(new)} given and gives {self.n_spoilt} no finite "
                "probability"
            )
        self._queries: dict[str, list[tuple[str, AnswerSequence]]] = {
            Q_NEW: [a for a, yes in zip(asked, is_new, strict=True) if yes],
            Q_OLD: self._as_they_are(old),
            Q_AU: self._finite(model, list(self._rephrased(n_rephrased))),
        }

    def _as_they_are(self, facts: Sequence[Fact]) -> list[tuple[str, AnswerSequence]]:
        return [(f.id, self._encode(f.prompt, f.answer, fact_id=f.id)) for f in facts]

    def _rephrased(self, n: int) -> Iterator[tuple[str, AnswerSequence]]:
        for fact in self.new:
            for prompt in rephrase(fact)[:n]:
                try:
                    yield fact.id, self._encode(prompt, fact.answer, fact_id=fact.id)
                except FactError:
                    self.n_unusable += 1

    def _finite(
        self, model: nn.Module, asked: list[tuple[str, AnswerSequence]]
    ) -> list[tuple[str, AnswerSequence]]:
        """Those to which the model gives a finite probability."""
        read = np.isfinite(read_answers(model, [s for _, s in asked]).probability)
        self.n_unusable += int((~read).sum())
        return [one for one, yes in zip(asked, read, strict=True) if yes]

    def ask(self, model: nn.Module) -> Answer:
        """For each query and fact the means over its prompts."""
        found: Answer = {}
        for query, asked in self._queries.items():
            answers = read_answers(model, [s for _, s in asked])
            values: dict[str, list[tuple[float, float]]] = {}
            pairs = zip(answers.greedy.tolist(), answers.probability.tolist(), strict=True)
            for (fact, _), pair in zip(asked, pairs, strict=True):
                values.setdefault(fact, []).append(pair)
            found[query] = {
                fact: (float(np.mean([g for g, _ in v])), float(np.mean([p for _, p in v])))
                for fact, v in values.items()
            }
        return found

    def counts(self) -> dict[str, int]:
        """Facts and prompts of each query."""
        return {
            "new": len(self.new),
            "new but answered before training": self.n_known,
            "old": len(self._queries[Q_OLD]),
            "rephrased prompts": len(self._queries[Q_AU]),
        }


def _require_distinct(facts: Sequence[Fact]) -> None:
    if not facts:
        raise UserError("new_facts must hold at least one fact; got none")
    seen: set[str] = set()
    for fact in facts:
        if fact.id in seen:
            raise UserError(f"new_facts must have ids of their own; got {fact.id!r} twice")
        seen.add(fact.id)
