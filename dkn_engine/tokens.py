"""Prompts and answers as token ids, and the token that stands for "nothing here"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\u2581"  # SentencePiece's mark of a word's beginning


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
    policy), never those it puts behind. The answer gets the leading space of the tokenizer's
    convention and no special tokens; with that space, the two must be what the joined text is
    tokenised to.

    Args:
        tokenizer: of a causal model.
        prompt: without the answer and without a trailing space.
        answer: without a leading space.
        config: ``answer_space=False`` takes the answer as it stands, and then does not compare
            with the joined text; ``answer_special_tokens=True`` keeps the special tokens that the
            tokenizer adds to the answer as a text of its own. Both are the released code's way.
        max_length: the model's context, in tokens. All but the last answer token are fed to it.
        fact_id: for messages.

    Raises:
        FactError: prompt or answer is empty, not valid Unicode or has no token, the joined text is
            tokenised otherwise, or the fact does not fit the context; the message names the fact.
    """
    where = f"fact {fact_id!r}: " if fact_id is not None else ""
    for name, text in (("prompt", prompt), ("answer", answer)):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # Half of a surrogate pair, which no tokenizer takes.
            raise FactError(f"{where}the {name} {text!r} is not valid Unicode") from None
    if not answer.strip():
        raise FactError(f"{where}the answer is empty")
    prompt_ids = _encode_prompt(tokenizer, prompt)
    if not prompt_ids:
        raise FactError(f"{where}the prompt {prompt!r} has no token")
    answer_ids = _encode_answer(tokenizer, answer, config)
    if not answer_ids:
        raise FactError(f"{where}the answer {answer!r} has no token")
    if config.answer_space:
        _check_border(tokenizer, prompt, answer, where)
    length = len(prompt_ids) + len(answer_ids) - 1
    if max_length is not None and length > max_length:
        raise FactError(
            f"{where}prompt and answer need {length} positions; the model's context has "
            f"{max_length}"
        )
    return EncodedPrompt(prompt_ids, answer_ids)


def mask_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that replaces a prompt token in the masked baseline.

    The mask token, else the end-of-text token: the tokenizer's own ``eos_token``, which in an
    instruct model may be the end of a turn.

    Raises:
        UserError: the tokenizer has neither.
    """
    for token in (tokenizer.mask_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        "tokenizer must have a mask token or an end-of-text token for the masked baseline; got "
        "neither: set tokenizer.mask_token, or use baseline='zero'"
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    # verbose=False: a text longer than the context is reported by us, with the fact's id.
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """The prompt's tokens behind the special tokens that belong in front of a text."""
    plain = _encode(tokenizer, prompt, special=False)
    # An empty prompt would not tell front from back.
    return front_tokens(tokenizer, prompt if plain else "a") + plain


def front_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts in front of a text that has tokens."""
    plain, full = (_encode(tokenizer, text, special=special) for special in (False, True))
    starts = range(len(full) - len(plain) + 1)
    return full[: next((i for i in starts if full[i : i + len(plain)] == plain), 0)]


def _encode_answer(
    tokenizer: PreTrainedTokenizerBase, answer: str, config: FactsConfig
) -> tuple[int, ...]:
    text = _spaced(tokenizer, answer) if config.answer_space else answer
    return _encode(tokenizer, text, special=config.answer_special_tokens)


def _spaced(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """The answer with a space in front, unless the tokenizer itself puts one before any text."""
    ids = _encode(tokenizer, "a", special=False)
    first = tokenizer.convert_ids_to_tokens(list(ids[:1]))
    adds_space = bool(first) and str(first[0]).startswith((_SPACE, "\u0120"))
    return answer if adds_space else f" {answer}"


def _check_border(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, where: str) -> None:
    ids = _encode(tokenizer, prompt, special=False)
    ids += _encode(tokenizer, _spaced(tokenizer, answer), special=False)
    joined = _encode(tokenizer, f"{prompt} {answer}", special=False)
    if ids != joined:
        at = next((i for i, (a, b) in enumerate(zip(ids, joined, strict=False)) if a != b), 0)
        apart, together = (
            tokenizer.convert_ids_to_tokens(list(x[max(0, at - 1) : at + 3])) for x in (ids, joined)
        )
        raise FactError(
            f"{where}prompt and answer are tokenised otherwise when joined: {apart} became "
            f"{together} near {prompt[-20:]!r} + {answer!r}"
        )
