"""The forms in which a known fact is asked: as it is, perturbed, and paraphrased."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from dkn_engine.analysis.config import RobustnessConfig
from dkn_engine.analysis.experiments.robustness.perturb import KINDS, perturb
from dkn_engine.analysis.neuron_groups import NeuronGroups
from dkn_engine.config import Config
from dkn_engine.errors import FactError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence, encode_sequences

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

CLEAN, PERTURBED, PARAPHRASE = "clean", "perturbed", "paraphrase"


@dataclass(frozen=True, slots=True)
class Query:
    """One form of a fact's question: ``clean``, a kind of perturbation, or ``paraphrase``."""

    kind: str
    sequence: AnswerSequence


class Queries:
    """Makes the queries of one fact after another, and counts what could not be made.

    Args:
        model, tokenizer: that the queries are for.
        config: of the run: how facts become tokens, how many paraphrases helped to find neurons.
        settings: ``kinds`` of perturbations, and how many different ones ``per_kind``.
        seed: of the perturbations.

    Attributes:
        refused: by kind, perturbations for which a prompt has too few words.
        unusable: by kind, those that cannot be encoded with the answer.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        config: Config,
        settings: RobustnessConfig,
        seed: int,
    ) -> None:
        self._encode = partial(encode_sequence, model, tokenizer, config=config.facts)
        self._encode_usable = partial(encode_sequences, model, tokenizer, config=config.facts)
        self._n_used = config.selection.n_paraphrases
        self.kinds, self.per_kind, self.seed = settings.kinds, settings.per_kind, seed
        self.refused: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()

    def of(self, one: NeuronGroups) -> list[Query]:
        """The clean query first, then perturbations, then at most one held-out paraphrase.

        Raises:
            FactError: the clean query cannot be encoded.
        """
        fact, answer = one.fact, one.result.answer
        usable = self._encode_usable([(p, answer) for p in fact.paraphrases[self._n_used :]])
        return [
            Query(CLEAN, self._encode(fact.prompt, answer, fact_id=fact.id)),
            *self._perturbed(one),
            *(Query(PARAPHRASE, sequence) for sequence in usable[:1]),
        ]

    def _perturbed(self, one: NeuronGroups) -> Iterator[Query]:
        for kind, draw in product(self.kinds, range(self.per_kind)):
            text = perturb(one.fact, kind, seed=self.seed, draw=draw)
            if text is None:
                self.refused[kind] += 1
                continue
            try:
                yield Query(kind, self._encode(text, one.result.answer, fact_id=one.fact.id))
            except FactError:
                self.unusable[kind] += 1

    def notes(self) -> Iterator[str]:
        """What could not be made, in sentences."""
        for kind in self.kinds:
            if self.refused[kind]:
                yield (
                    f"{self.refused[kind]} queries of kind {kind} do not exist: "
                    "their prompts have too few words."
                )
            if self.unusable[kind]:
                yield (
                    f"{self.unusable[kind]} queries of kind {kind} are left out: "
                    "they cannot be encoded with their answers."
                )


def columns(queries: Sequence[Query]) -> dict[str, list[int]]:
    """Indices of the queries by kind, and of all perturbations as ``perturbed``."""
    kinds = [q.kind for q in queries]
    perturbed = [i for i, k in enumerate(kinds) if k in KINDS]
    names = dict.fromkeys(k for q in kinds for k in ((PERTURBED, q) if q in KINDS else (q,)))
    return {
        name: perturbed if name == PERTURBED else [i for i, k in enumerate(kinds) if k == name]
        for name in names
    }
