"""Facts as teacher-forced token sequences, or as the released code continues them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dkn_engine.config import AttributionConfig, FactsConfig
from dkn_engine.errors import FactError, UnsupportedModelError, UserError
from dkn_engine.facts.blanks import in_front_of_blank
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.continuation import ByText, Continuation, Tokens
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.models.devices import input_device
from dkn_engine.models.guest import guest
from dkn_engine.models.kinds import is_encoder, is_encoder_decoder, text_config
from dkn_engine.models.masked_answers import encode_masked_answer
from dkn_engine.models.tokens import encode_fact
from dkn_engine.models.written_answers import decoder_inputs, encode_written_answer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from dkn_engine.types import Fact


def encode_sequence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    *,
    config: FactsConfig,
    fact_id: str | None = None,
    wrong_answers: Sequence[str] = (),
) -> AnswerSequence:
    """Prompt and answer as the tokens that enter the model and those it should predict.

    In an encoder the answer's masks stand in the prompt's blank, as ``config.answer_masks`` says;
    of an encoder-decoder ``config.decoder_writes`` says what its two parts read.

    With ``config.teacher_forced`` the answer's own tokens follow the prompt; otherwise the
    model's greedy continuation does, as ``config.continuation`` says (released code). It is set
    ``against`` the wrong answers, which are encoded alike.

    Raises:
        FactError: see :func:`dkn_engine.models.tokens.encode_fact` and, of an encoder,
            :func:`dkn_engine.models.masked_answers.encode_masked_answer`, of an encoder-decoder
            :func:`dkn_engine.models.written_answers.encode_written_answer`; or the tokenizer gives
            a token that the model does not have, or a decoder's blank is not at the end.
        UserError: settings of the released code, which is about decoders, and an encoder; or the
            tokenizer or the configuration lacks a token that is needed.
    """
    if wrong_answers:
        alone = partial(encode_sequence, model, tokenizer, prompt, config=config, fact_id=fact_id)
        return replace(alone(answer), against=tuple(map(alone, wrong_answers)))
    if is_encoder(model):
        return _masked_sequence(model, tokenizer, prompt, answer, config, fact_id)
    if is_encoder_decoder(model):
        return _written_sequence(model, tokenizer, prompt, answer, config, fact_id)
    limit = context_length(model)
    if config.blank == "keep":
        prompt = _in_front_of_blank(prompt, fact_id)
    encoded = encode_fact(
        tokenizer, prompt, answer, config=config, max_length=limit, fact_id=fact_id
    )
    _require_known(model, encoded.prompt_ids + encoded.answer_ids, fact_id)
    ids, targets = encoded.prompt_ids, encoded.answer_ids
    if config.teacher_forced or len(targets) == 1:
        return AnswerSequence(ids + targets[:-1], len(ids), targets)
    behind: Continuation = partial(operator.add, ids)
    if config.continuation == "edited_text":
        where = f"fact {fact_id!r}: " if fact_id is not None else ""
        behind = ByText(tokenizer, prompt, limit, where)
    own: Tokens = ()
    for _ in targets[:-1]:  # the model's own most probable tokens, one by one
        own += (int(_last_logits(model, behind(own)).argmax()),)
    steps: tuple[Tokens, ...] = ()
    if config.repeat_first_token or config.continuation == "edited_text":
        follow = own[:1] * len(own) if config.repeat_first_token else own
        steps = tuple(behind(follow[:i]) for i in range(len(targets)))
    free = None if config.continuation == "clean" else behind
    if free is not None:
        free(own)  # which steps hold only if nothing is repeated in its place
    return AnswerSequence(ids + own, len(ids), targets, steps, free)


def _masked_sequence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    config: FactsConfig,
    fact_id: str | None,
) -> AnswerSequence:
    """An encoder's sentence with the answer's places masked, and for each token what it sees."""
    _refuse_released(config)
    limit = context_length(model)
    found = encode_masked_answer(tokenizer, prompt, answer, max_length=limit, fact_id=fact_id)
    ids, first, targets = found.ids, found.first, found.answer_ids
    _require_known(model, ids + targets, fact_id)
    steps: tuple[Tokens, ...] = ()
    if config.answer_masks == "left_to_right" and len(targets) > 1:
        steps = tuple(ids[:first] + targets[:i] + ids[first + i :] for i in range(len(targets)))
    masks = tuple(range(first, first + len(targets)))
    return AnswerSequence(ids, len(ids), targets, steps, masks=masks)


def _written_sequence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    config: FactsConfig,
    fact_id: str | None,
) -> AnswerSequence:
    """What an encoder reads, and its decoder as far as the prediction of the last answer token."""
    _refuse_released(config)
    options: Any = {"max_length": context_length(model), "fact_id": fact_id}
    found = encode_written_answer(
        tokenizer, prompt, answer, writes=config.decoder_writes, **options
    )
    n, first = len(found.answer_ids), found.first
    ids = decoder_inputs(model, found.labels)[: first + n]
    _require_known(model, found.source + ids + found.answer_ids, fact_id)
    blank = () if found.blank is None else (found.blank,)
    return AnswerSequence(ids, first + 1, found.answer_ids, source=found.source, blank=blank)


def _refuse_released(config: FactsConfig) -> None:
    if not config.teacher_forced or config.answer_special_tokens:
        raise UserError(
            "facts.teacher_forced=false and facts.answer_special_tokens=true are of the released "
            "code, which continues a decoder's prompt; got them with an encoder"
        )


def _in_front_of_blank(prompt: str, fact_id: str | None) -> str:
    """The prompt of a causal model, whose blank must be at its end.

    Raises:
        FactError: it is elsewhere.
    """
    try:
        return in_front_of_blank(prompt)
    except ValueError as error:
        where = f"fact {fact_id!r}: " if fact_id is not None else ""
        raise FactError(
            f"{where}{error}, which a causal model continues; an encoder fills blanks anywhere"
        ) from None


def _require_known(model: nn.Module, ids: Tokens, fact_id: str | None) -> None:
    n, largest = n_tokens(model), max(ids)
    if largest >= n:
        where = f"fact {fact_id!r}: " if fact_id is not None else ""
        raise FactError(
            f"{where}token {largest} is not among the model's {n}; do tokenizer and model belong "
            "together?"
        )


def wrong_answers_of(fact: Fact, config: AttributionConfig) -> tuple[str, ...]:
    """The wrong answers that the objective takes off; none for most.

    Raises:
        FactError: the objective needs them and the fact has none.
    """
    if config.objective != "logit_difference":
        return ()
    if not fact.wrong_answers:
        raise FactError(
            f"fact {fact.id!r}: objective='logit_difference' needs wrong_answers; it has none"
        )
    return fact.wrong_answers


def encode_sequences(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    *,
    config: FactsConfig,
    wrong_answers: Sequence[str] = (),
) -> list[AnswerSequence]:
    """Those of the (prompt, answer) pairs that can be encoded, in order; the rest is left out.

    Each is set against the same wrong answers.
    """
    found = []
    for prompt, answer in texts:
        try:
            found.append(
                encode_sequence(
                    model, tokenizer, prompt, answer, config=config, wrong_answers=wrong_answers
                )
            )
        except FactError:
            continue
    return found


def n_tokens(model: nn.Module) -> int:
    """Number of tokens that the model has embeddings for.

    Raises:
        UnsupportedModelError: it has several tables of them, as MusicGen.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]  # of transformers
    weight = getattr(embeddings, "weight", None)
    if weight is None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected one table of token embeddings; found "
            f"{type(embeddings).__name__}"
        )
    n: int = weight.shape[0]
    return n


def context_length(model: nn.Module) -> int | None:
    """Most tokens the model takes, where its configuration says so."""
    length = getattr(text_config(model), "max_position_embeddings", None)
    if not isinstance(length, int) or length < 1:  # XLNet: -1
        return None
    # RoBERTa's positions begin behind that of the padding token.
    tables = [m for name, m in model.named_modules() if name.endswith(".position_embeddings")]
    unused = [t.padding_idx + 1 for t in tables if getattr(t, "padding_idx", None) is not None]
    return length - max(unused, default=0)


def clean_probability(model: nn.Module, one: AnswerSequence) -> float:
    """Product of the answer tokens' probabilities behind the model's own continuation."""
    tokens, log_p = one.ids[one.n_prompt :], 0.0
    for i, target in enumerate(one.targets):
        logits = _last_logits(model, one.behind(tokens[:i])).double()
        log_p += float(logits.log_softmax(-1)[target])
    return math.exp(log_p)


def _last_logits(model: nn.Module, ids: Tokens) -> Tensor:
    """Logits ``[V]`` at the last position."""
    device = input_device(model)
    with guest(model, grad=False):
        last = torch.tensor([len(ids) - 1], device=device)
        table = torch.tensor([ids], device=device)
        return position_logits(model, {"input_ids": table}, torch.zeros_like(last), last)[0]
