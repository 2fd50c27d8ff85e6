"""Facts as teacher-forced token sequences, or as the released code continues them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dkn_engine.attribution.contexts import AnswerSequence
from dkn_engine.attribution.prefill import position_logits
from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError, UnsupportedModelError
from dkn_engine.guest import guest
from dkn_engine.tokens import EncodedPrompt, encode_fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def encode_sequence(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer: str,
    *,
    config: FactsConfig,
    fact_id: str | None = None,
) -> AnswerSequence:
    """Prompt and answer as the tokens that enter the model and those it should predict.

    With ``config.teacher_forced`` the answer's own tokens follow the prompt; otherwise the
    model's greedy continuation does (released code).

    Raises:
        FactError: see :func:`dkn_engine.tokens.encode_fact`; or the tokenizer gives a token that
            the model does not have.
    """
    encoded = encode_fact(
        tokenizer,
        prompt,
        answer,
        config=config,
        max_length=context_length(model),
        fact_id=fact_id,
    )
    _require_known(model, encoded, fact_id)
    follow = encoded.answer_ids[:-1]
    if not config.teacher_forced:
        follow = _greedy(model, encoded.prompt_ids, len(follow))
    return AnswerSequence(encoded.prompt_ids + follow, len(encoded.prompt_ids), encoded.answer_ids)


def _require_known(model: nn.Module, encoded: EncodedPrompt, fact_id: str | None) -> None:
    n, largest = n_tokens(model), max(encoded.prompt_ids + encoded.answer_ids)
    if largest >= n:
        where = f"fact {fact_id!r}: " if fact_id is not None else ""
        raise FactError(
            f"{where}token {largest} is not among the model's {n}; do tokenizer and model belong "
            "together?"
        )


def encode_sequences(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    *,
    config: FactsConfig,
) -> list[AnswerSequence]:
    """Those of the (prompt, answer) pairs that can be encoded, in order; the rest is left out."""
    found = []
    for prompt, answer in texts:
        try:
            found.append(encode_sequence(model, tokenizer, prompt, answer, config=config))
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
    """Most positions the model takes, where its configuration says so."""
    config: Any = model.config
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def _greedy(model: nn.Module, prompt_ids: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The model's own ``n`` most probable tokens after the prompt, one by one."""
    device = next(model.parameters()).device
    ids = list(prompt_ids)
    with guest(model, grad=False):
        for _ in range(n):
            table = torch.tensor([ids], device=device)
            last = torch.tensor([len(ids) - 1], device=device)
            logits = position_logits(model, table, torch.zeros_like(last), last)
            ids.append(int(logits[0].argmax()))
    return tuple(ids[len(prompt_ids) :])
