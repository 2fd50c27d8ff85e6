"""Made-up facts, each in three wordings, and a tokenizer of whole words for them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dkn_engine.types import Fact

SUBJECTS = ("Arda", "Belu", "Corin", "Dovar", "Elsin", "Farow")
RELATIONS = ("capital", "river", "language")
WORDINGS = (
    "the {subject} {relation} it is",
    "the {relation} of {subject} is",
    "of {subject} the {relation} is",
)
_SPECIAL = ("<unk>", "<s>", "</s>", "<mask>")


def made_up_facts(seed: int) -> list[Fact]:
    """Every relation of every subject: 32 facts, of which each has an answer of its own.

    Answers are single words, such as ``river5``; a seed says which subject has which. The first
    wording is the prompt, the others are paraphrases.
    """
    rng = np.random.default_rng(seed)
    facts = []
    for relation in RELATIONS:
        for subject, k in zip(SUBJECTS, rng.permutation(len(SUBJECTS)), strict=True):
            prompt, *others = (w.format(subject=subject, relation=relation) for w in WORDINGS)
            facts.append(
                Fact(
                    f"{relation}-{subject}",
                    prompt,
                    f"{relation}{k}",
                    subject=subject,
                    relation=relation,
                    paraphrases=tuple(others),
                )
            )
    return facts


def words_of(facts: Sequence[Fact]) -> list[str]:
    """The vocabulary, special tokens first."""
    texts = itertools.chain.from_iterable((f.prompt, *f.paraphrases, f.answer) for f in facts)
    return [*_SPECIAL, *sorted({word for text in texts for word in text.split()})]


def words_tokenizer(facts: Sequence[Fact]) -> Any:
    """Splits at spaces; a token is a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(words_of(facts))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ("unk_token", "bos_token", "eos_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, _SPECIAL, strict=True))
    )
