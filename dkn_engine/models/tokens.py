"""Prompts and answers as token ids, and the token that stands for "nothing here"."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dkn_engine.config import AUTO, END_OF_TEXT, AttributionConfig, FactsConfig
from dkn_engine.errors import FactError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SPACE = "\u2581"  # SentencePiece's mark of a word's beginning
# Tokenizers with an unknown part in a prompt, about which enough is said.
_TOLD: weakref.WeakSet[PreTrainedTokenizerBase] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids of a prompt, special tokens in front included, and of the answer after it."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def encode_fact(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    *,
    config: FactsConfig,
    max_length: int | None = None,
    fact_id: str | None = None,
) -> EncodedPrompt:
    """Token ids of prompt and answer, tokenised separately.

    The prompt gets the special tokens that the tokenizer puts in front of a text (its own BOS
    policy) unless it begins with them, never those it puts behind. The answer gets the leading
    space of the tokenizer's convention and no special tokens; with that space, the two must be
    what the joined text is tokenised to. A prompt with a part that the tokenizer does not know is
    asked, and said once in the log.

    Args:
        tokenizer: of a causal model.
        prompt: without the answer and without a trailing space.
        answer: without a leading space.
        config: ``answer_space=False`` takes the answer as it stands, and compares with the joined
            text only where the tokenizer puts a space before any text: there the answer is what
            the joined text has behind the prompt. ``answer_special_tokens=True`` keeps the special
            tokens that the tokenizer adds to the answer as a text of its own. Both together are
            the released code's way.
        max_length: the model's context, in tokens. All but the last answer token are fed to it.
        fact_id: for messages.

    Raises:
        FactError: prompt or answer is empty, not valid Unicode or has no token, the answer
            has a part that the tokenizer does not know or its unknown token written out, the joined
            text is tokenised otherwise, or the fact does not fit the context; the message names
            the fact.
    """
    where = f"fact {fact_id!r}: " if fact_id is not None else ""
    require_text(prompt, answer, where)
    prompt_ids = encode_prompt(tokenizer, prompt)
    if not prompt_ids:
        raise FactError(f"{where}the prompt {prompt!r} has no token")
    answer_ids = _encode_answer(tokenizer, prompt, answer, config, where)
    if not answer_ids:
        raise FactError(f"{where}the answer {answer!r} has no token")
    refuse_unknown(tokenizer, answer, answer_ids, config, where)
    say_unknown(tokenizer, prompt, where)
    if config.answer_space:
        special = config.answer_special_tokens
        plain = encode_text(tokenizer, spaced(tokenizer, answer)) if special else answer_ids
        _check_border(tokenizer, prompt, answer, plain, where)
    length = len(prompt_ids) + len(answer_ids) - 1
    if max_length is not None and length > max_length:
        raise FactError(
            f"{where}prompt and answer need {length} positions; the model's context has "
            f"{max_length}"
        )
    return EncodedPrompt(prompt_ids, answer_ids)


def require_text(prompt: str, answer: str, where: str) -> None:
    for name, text in (("prompt", prompt), ("answer", answer)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # Half of a surrogate pair, which no tokenizer takes.
            raise FactError(f"{where}the {name} {text!r} is not valid Unicode") from None
    if not answer.strip():
        raise FactError(f"{where}the answer is empty")


def mask_token_id(tokenizer: PreTrainedTokenizerBase, which: str = AUTO) -> int:
    """The token that replaces a prompt token in the masked baseline.

    Args:
        tokenizer: of a causal model.
        which: its text; ``auto``: the mask token, else the end-of-text token, which is the
            tokenizer's own ``eos_token`` and in an instruct model may be the end of a turn; where
            there are sentinels and no token that begins a text, as of T5, the sentinel behind that
            of a blank;
            ``end_of_text``: that one in any case.

    Raises:
        UserError: ``auto``, and the tokenizer has neither; or the text is not one known token.
    """
    if which not in {AUTO, END_OF_TEXT}:
        return _one_token(tokenizer, which)
    mask, end = tokenizer.mask_token_id, tokenizer.eos_token_id
    if mask is None and tokenizer.bos_token_id is None:
        mask = sentinel_id(tokenizer, 1)
    for token in (end,) if which == END_OF_TEXT else (mask, end):
        if token is not None:
            return int(token)
    if which == END_OF_TEXT:
        raise UserError(
            "tokenizer must have an end-of-text token with mask_token='end_of_text'; got none: set "
            "tokenizer.eos_token, or use mask_token='auto' or baseline='zero'"
        )
    raise UserError(
        "tokenizer must have a mask token or an end-of-text token for the masked baseline; got "
        "neither: set tokenizer.mask_token or AttributionConfig.mask_token, or use baseline='zero'"
    )


def sentinel_id(tokenizer: PreTrainedTokenizerBase, number: int) -> int | None:
    """T5's token ``<extra_id_number>``, which stands for a part of a text; None without one."""
    ids = encode_text(tokenizer, f"<extra_id_{number}>")
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def _one_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = encode_text(tokenizer, text)
    found = [str(t) for t in tokenizer.convert_ids_to_tokens(list(ids))]
    if len(ids) != 1:
        got = f"{len(ids)} tokens {found}"
    elif ids[0] == tokenizer.unk_token_id and text != tokenizer.unk_token:
        got = f"the unknown token {found[0]!r}"
    else:
        return ids[0]
    raise UserError(
        f"mask_token must be 'auto' or a text that is exactly one token of the tokenizer; {text!r} "
        f"is {got}"
    )


def mask_token_text(tokenizer: PreTrainedTokenizerBase, config: AttributionConfig) -> str | None:
    """The token that masks, as the tokenizer spells it; None where no baseline is masked."""
    if config.baseline != "masked":
        return None
    return str(tokenizer.convert_ids_to_tokens(mask_token_id(tokenizer, config.mask_token)))


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False
) -> tuple[int, ...]:
    """Token ids of a text, with the tokenizer's special tokens around it or without."""
    # verbose=False: a text longer than the context is reported by us, with the fact's id.
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """The prompt's tokens behind the special tokens that belong in front of a text."""
    plain = encode_text(tokenizer, prompt)
    if plain:
        front = _in_front(plain, encode_text(tokenizer, prompt, special=True))
    else:  # An empty prompt would not tell front from back.
        front = front_tokens(tokenizer, "a")
    # Chat templates bring them along, and twice is no text that a model has seen.
    return plain if plain[: len(front)] == front else front + plain


def front_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts in front of a text that has tokens."""
    plain, full = (encode_text(tokenizer, text, special=special) for special in (False, True))
    return _in_front(plain, full)


def _in_front(plain: tuple[int, ...], full: tuple[int, ...]) -> tuple[int, ...]:
    """Of a text's tokens with special ones around them, those before the text's own."""
    starts = range(len(full) - len(plain) + 1)
    return full[: next((i for i in starts if full[i : i + len(plain)] == plain), 0)]


def _encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, config: FactsConfig, where: str
) -> tuple[int, ...]:
    if not config.answer_space and not config.answer_special_tokens and _adds_space(tokenizer):
        plain, joined = (encode_text(tokenizer, t) for t in (prompt, prompt + answer))
        if joined[: len(plain)] != plain:
            raise other_border(tokenizer, plain, joined, prompt, answer, where)
        return joined[len(plain) :]
    text = spaced(tokenizer, answer) if config.answer_space else answer
    return encode_text(tokenizer, text, special=config.answer_special_tokens)


def _has_unknown(tokenizer: PreTrainedTokenizerBase, text: str, ids: tuple[int, ...]) -> bool:
    """Whether a part of the text became the unknown token without being its name.

    ``ids`` are without special tokens around the text: some tokenizers use one for both.
    """
    unknown = tokenizer.unk_token_id
    return unknown is not None and ids.count(unknown) > text.count(str(tokenizer.unk_token))


def _unknown(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return f"{text!r} holds what the tokenizer does not know and reads as {tokenizer.unk_token!r}"


def refuse_unknown(
    tokenizer: PreTrainedTokenizerBase,
    answer: str,
    answer_ids: tuple[int, ...],
    config: FactsConfig,
    where: str,
) -> None:
    if config.answer_special_tokens:
        text = spaced(tokenizer, answer) if config.answer_space else answer
        answer_ids = encode_text(tokenizer, text)
    if _has_unknown(tokenizer, answer, answer_ids):
        raise FactError(f"{where}the answer {_unknown(tokenizer, answer)}; it cannot be asked for")
    unknown = tokenizer.unk_token_id
    # A token that also ends or begins a text, as GPT-2's, means that where it is written out.
    if unknown in answer_ids and unknown not in {tokenizer.eos_token_id, tokenizer.bos_token_id}:
        raise FactError(
            f"{where}the answer {answer!r} holds the tokenizer's unknown token "
            f"{tokenizer.unk_token!r}, which stands for whatever it does not know; it cannot be "
            "asked for"
        )


def say_unknown(tokenizer: PreTrainedTokenizerBase, prompt: str, where: str) -> None:
    if tokenizer.unk_token_id is None or tokenizer in _TOLD:
        return
    if _has_unknown(tokenizer, prompt, encode_text(tokenizer, prompt)):
        _TOLD.add(tokenizer)
        text = "%sthe prompt %s; it is asked all the same, as are others like it"
        logger.warning(text, where, _unknown(tokenizer, prompt))


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts a space before any text."""
    ids = encode_text(tokenizer, "a")
    first = tokenizer.convert_ids_to_tokens(list(ids[:1]))
    return bool(first) and str(first[0]).startswith((_SPACE, "\u0120"))


def spaced(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """The answer with a space in front, unless the tokenizer itself puts one before any text."""
    return answer if _adds_space(tokenizer) else f" {answer}"


def _check_border(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    answer_ids: tuple[int, ...],
    where: str,
) -> None:
    """``answer_ids`` are without special tokens."""
    ids = encode_text(tokenizer, prompt) + answer_ids
    joined = encode_text(tokenizer, f"{prompt} {answer}", special=False)
    if ids != joined:
        raise other_border(tokenizer, ids, joined, prompt, answer, where)


def other_border(
    tokenizer: PreTrainedTokenizerBase,
    apart: tuple[int, ...],
    joined: tuple[int, ...],
    prompt: str,
    answer: str,
    where: str,
) -> FactError:
    at = next((i for i, (a, b) in enumerate(zip(apart, joined, strict=False)) if a != b), 0)
    one, other = (
        tokenizer.convert_ids_to_tokens(list(x[max(0, at - 1) : at + 3])) for x in (apart, joined)
    )
    return FactError(
        f"{where}prompt and answer are tokenised otherwise when joined: {one} became "
        f"{other} near {prompt[-20:]!r} + {answer!r}"
    )
