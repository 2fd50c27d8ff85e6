"""Positions of a prompt's tokens, by number or by its subject."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dkn_engine.errors import FactError
from dkn_engine.models.tokens import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dkn_engine.types import Fact


def prompt_positions(
    tokenizer: PreTrainedTokenizerBase,
    fact: Fact,
    which: Literal["answer", "subject_last", "all"] | tuple[int, ...],
) -> tuple[int, ...]:
    """The positions that ``AttributionConfig.positions`` names in a fact's prompt, ascending.

    Positions count the tokens that the engine puts in front of a prompt, too. None for ``answer``,
    which are no fixed positions of the prompt.

    Raises:
        FactError: the prompt has no such token, or its subject is not to be found in it.
    """
    if which == "answer":
        return ()
    ids = encode_prompt(tokenizer, fact.prompt)
    if which == "subject_last":
        return (_subject_last(tokenizer, fact, ids),)
    if which == "all":
        return tuple(range(len(ids)))
    unknown = [i for i in which if not -len(ids) <= i < len(ids)]
    if unknown:
        raise FactError(
            f"fact {fact.id!r}: positions must be among the prompt's {len(ids)} tokens; got "
            f"{unknown[0]}"
        )
    return tuple(sorted({i % len(ids) for i in which}))


def _subject_last(tokenizer: PreTrainedTokenizerBase, fact: Fact, ids: tuple[int, ...]) -> int:
    """The last token of the last mention of the subject."""
    if fact.subject is None or fact.subject not in fact.prompt:
        raise FactError(
            f"fact {fact.id!r}: positions='subject_last' needs a subject that stands in its "
            f"prompt; got {fact.subject!r} and {fact.prompt!r}"
        )
    end = fact.prompt.rindex(fact.subject) + len(fact.subject)
    front = encode_prompt(tokenizer, fact.prompt[:end])
    if ids[: len(front)] != front:
        raise FactError(
            f"fact {fact.id!r}: positions='subject_last' needs a token that ends with the "
            f"subject; the prompt {fact.prompt!r} has none behind {fact.subject!r}"
        )
    return len(front) - 1
