"""Facts of encoder-decoders: what the encoder reads, and what the decoder writes of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError, UserError
from dkn_engine.facts.blanks import in_front_of_blank
from dkn_engine.models.kinds import text_config
from dkn_engine.models.masked_answers import Sentence, encode_sentence
from dkn_engine.models.tokens import (
    encode_text,
    refuse_unknown,
    require_text,
    say_unknown,
    sentinel_id,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Writes = Literal["auto", "blank", "text", "answer"]


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """An encoder-decoder's two texts.

    Attributes:
        source: the tokens that the encoder reads, special ones included.
        blank: the position of the blank among them; None without one.
        labels: the tokens that the decoder writes.
        first: where in ``labels`` the answer begins.
        answer_ids: its tokens there.
    """

    source: tuple[int, ...]
    blank: int | None
    labels: tuple[int, ...]
    first: int
    answer_ids: tuple[int, ...]


def encode_written_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    *,
    writes: Writes = "auto",
    max_length: int | None = None,
    fact_id: str | None = None,
) -> WrittenAnswer:
    """Prompt and answer as the tokens that an encoder reads and its decoder writes.

    Where a prompt's blank is, and what stands behind a prompt without one, see
    :func:`dkn_engine.facts.blanks.around_blank`; the sentence is tokenised as a whole.

    Args:
        tokenizer: of an encoder-decoder.
        prompt: with a blank or without one.
        answer: what stands in the blank.
        writes: ``blank``: the encoder reads the first sentinel, ``<extra_id_0>``, for the blank;
            the decoder writes it and the answer. ``text``: the encoder reads one mask token for
            the blank; the decoder writes the whole sentence. ``answer``: the encoder reads the
            prompt, without its blank, which must be at its end; the decoder writes the answer.
            ``auto``: ``blank`` where the tokenizer has sentinels, else ``text`` where it has a mask
            token, else ``answer``.
        max_length: most tokens that the model takes.
        fact_id: for messages.

    Raises:
        FactError: see :func:`dkn_engine.models.masked_answers.encode_sentence`; or the blank is
            not at the end (``answer``).
        UserError: the tokenizer has no sentinels, or no mask token, and ``writes`` needs them.

    Source:
        ``blank``: span corruption, Raffel et al. 2020 (arXiv 1910.10683), section 3.1.4.
        ``text``: text infilling, Lewis et al. 2020 (arXiv 1910.13461), section 2.2.
    """
    where = f"fact {fact_id!r}: " if fact_id is not None else ""
    require_text(prompt, answer, where)
    if writes == "auto":
        writes = writes_of(tokenizer)
    if writes == "answer":
        found = _from_the_start(tokenizer, prompt, answer, where)
    else:
        sign, spelled = _blank_token(tokenizer, writes)
        one = encode_sentence(tokenizer, prompt, answer, (sign, spelled), where)
        found = _sentinel(one, sign) if writes == "blank" else _whole(one, sign)
    length = max(len(found.source), found.first + len(found.answer_ids))
    if max_length is not None and length > max_length:
        raise FactError(
            f"{where}prompt and answer need {length} positions; the model's context has "
            f"{max_length}"
        )
    return found


def writes_of(tokenizer: PreTrainedTokenizerBase) -> Literal["blank", "text", "answer"]:
    """What ``writes="auto"`` is with a tokenizer."""
    if sentinel_id(tokenizer, 0) is not None:
        return "blank"
    return "answer" if tokenizer.mask_token_id is None else "text"


def _blank_token(tokenizer: PreTrainedTokenizerBase, writes: str) -> tuple[int, str]:
    """The token that stands for a blank, and its text."""
    found, spelled = tokenizer.mask_token_id, str(tokenizer.mask_token)
    if writes == "blank":
        found, spelled = sentinel_id(tokenizer, 0), "<extra_id_0>"
    if found is None:
        needed = f"the token {spelled!r}" if writes == "blank" else "a mask token"
        raise UserError(
            f"tokenizer must have {needed} with facts.decoder_writes={writes!r}; got none: use "
            "facts.decoder_writes='answer'"
        )
    return int(found), spelled


def _read(one: Sentence, sign: int) -> tuple[int, ...]:
    """The sentence with one token for its answer, however many that has."""
    return (*one.ids[: one.first], sign, *one.ids[one.first + len(one.answer_ids) :])


def _sentinel(one: Sentence, sign: int) -> WrittenAnswer:
    labels = (sign, *one.answer_ids)
    return WrittenAnswer(_read(one, sign), one.first, labels, 1, one.answer_ids)


def _whole(one: Sentence, sign: int) -> WrittenAnswer:
    return WrittenAnswer(_read(one, sign), one.first, one.ids, one.first, one.answer_ids)


def _from_the_start(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, where: str
) -> WrittenAnswer:
    try:
        read = in_front_of_blank(prompt)
    except ValueError as error:
        raise FactError(f"{where}{error}, behind which alone a decoder writes an answer") from None
    plain, labels = (_as_target(tokenizer, answer, special=special) for special in (False, True))
    starts = range(len(labels) - len(plain) + 1)
    first = next((i for i in starts if labels[i : i + len(plain)] == plain), None)
    if not plain or first is None:
        raise FactError(f"{where}the answer {answer!r} has no token")
    refuse_unknown(tokenizer, answer, plain, FactsConfig(), where)
    say_unknown(tokenizer, read, where)
    return WrittenAnswer(encode_text(tokenizer, read, special=True), None, labels, first, plain)


def _as_target(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    """Tokens of a text that is to be written, in whose language a tokenizer may have others."""
    found: Any = tokenizer(text_target=text, add_special_tokens=special, verbose=False)
    return tuple(found["input_ids"])


def decoder_inputs(model: nn.Module, labels: tuple[int, ...]) -> tuple[int, ...]:
    """What the decoder reads where it writes ``labels``: as many tokens, a start token in front.

    Raises:
        UserError: the model's configuration does not say which token that is.
    """
    import torch

    shift: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    try:
        if shift is not None:
            # Some put the label's last token in front, such as mBART its language.
            return tuple(shift(labels=torch.tensor([labels]))[0].tolist())
        start: Any = getattr(text_config(model), "decoder_start_token_id", None)
        return (int(start), *labels[:-1])
    except (TypeError, ValueError):
        raise UserError(
            "config.decoder_start_token_id must be the token that the decoder begins with; got "
            "none: set it as the model was trained"
        ) from None
