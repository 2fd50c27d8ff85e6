"""Prompts with a blank as an encoder's tokens: the answer's places hold the mask token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dkn_engine.config import Config, FactsConfig
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts.blanks import around_blank
from dkn_engine.models.kinds import is_encoder, is_encoder_decoder
from dkn_engine.models.tokens import (
    encode_prompt,
    encode_text,
    other_border,
    refuse_unknown,
    require_text,
    say_unknown,
    spaced,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def facts_config_of(model: nn.Module, config: FactsConfig) -> FactsConfig:
    """How facts are read for a model: those of one with an encoder keep their blanks."""
    two = is_encoder(model) or is_encoder_decoder(model)
    return replace(config, blank="keep") if two else config


def config_of(model: nn.Module, config: Config) -> Config:
    """As :func:`facts_config_of`, for all choices of a run."""
    return replace(config, facts=facts_config_of(model, config.facts))


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with an answer in its blank.

    Attributes:
        ids: all tokens, special ones at both ends included.
        first: the position of the answer's first token; the others follow it.
        answer_ids: its tokens there.
    """

    ids: tuple[int, ...]
    first: int
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MaskedAnswer:
    """A sentence of an encoder whose answer is masked.

    Attributes:
        ids: all tokens, special ones at both ends included.
        first: the position of the first of the answer's masks; the others follow it.
        answer_ids: the tokens that stand there in the sentence itself.
    """

    ids: tuple[int, ...]
    first: int
    answer_ids: tuple[int, ...]


def encode_masked_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    *,
    max_length: int | None = None,
    fact_id: str | None = None,
) -> MaskedAnswer:
    """The sentence with the answer in the prompt's blank, as many masks in its place.

    The sentence is tokenised as a whole, as it is in training, special tokens and all. Where its
    blank is, and what stands behind a prompt without one, see
    :func:`dkn_engine.facts.blanks.around_blank`.

    Args:
        tokenizer: of a masked language model.
        prompt: with a blank, ``[MASK]`` or as the tokenizer spells its mask; or without one.
        answer: what stands in the blank.
        max_length: most tokens that the model takes.
        fact_id: for messages.

    Raises:
        FactError: see :func:`encode_sentence`; or there are too many tokens.
        UserError: the tokenizer has no mask token.
    """
    where = f"fact {fact_id!r}: " if fact_id is not None else ""
    require_text(prompt, answer, where)
    mask = tokenizer.mask_token_id
    if mask is None:
        raise UserError(
            "tokenizer must have a mask token for a masked language model; got none: set "
            "tokenizer.mask_token"
        )
    one = encode_sentence(tokenizer, prompt, answer, (mask, str(tokenizer.mask_token)), where)
    if max_length is not None and len(one.ids) > max_length:
        raise FactError(
            f"{where}prompt and answer need {len(one.ids)} positions; the model's context has "
            f"{max_length}"
        )
    behind = one.first + len(one.answer_ids)
    ids = one.ids[: one.first] + (mask,) * len(one.answer_ids) + one.ids[behind:]
    return MaskedAnswer(ids, one.first, one.answer_ids)


def encode_sentence(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    mask: tuple[int, str],
    where: str,
) -> Sentence:
    """The tokens of a prompt with the answer in its blank, tokenised as a whole.

    ``mask`` is the token for a blank and its text, ``where`` begins messages.

    Raises:
        FactError: there are several blanks, the answer has no token, the mask token or a part that
            the tokenizer does not know, or its tokens in the sentence are others than in front of
            nothing.
    """
    try:
        head, tail = around_blank(prompt, mask[1])
    except ValueError as error:
        raise FactError(f"{where}{error}") from None
    front = encode_prompt(tokenizer, head.rstrip(" "))
    answer_ids = encode_text(tokenizer, spaced(tokenizer, answer) if head[-1:] == " " else answer)
    if not answer_ids or mask[0] in answer_ids:
        found = "the mask token" if answer_ids else "no token"
        raise FactError(f"{where}the answer {answer!r} has {found}")
    refuse_unknown(tokenizer, answer, answer_ids, FactsConfig(), where)
    say_unknown(tokenizer, head + tail, where)
    full = encode_text(tokenizer, head + answer + tail, special=True)
    first, behind = len(front), len(front) + len(answer_ids)
    if full[:behind] != front + answer_ids:
        raise other_border(tokenizer, front + answer_ids, full, head, answer, where)
    return Sentence(full, first, answer_ids)
