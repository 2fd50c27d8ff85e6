"""Asking the model itself whether a statement is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError, UserError
from dkn_engine.forward.encoding import context_length
from dkn_engine.forward.lengths import padded_batches
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.models.devices import input_device
from dkn_engine.models.guest import guest
from dkn_engine.models.tokens import encode_fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# A sentence's number, what the model reads, and the two tokens that are compared behind it.
_Question = tuple[int, tuple[int, ...], tuple[int, int]]


def yes_over_no(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    template: Mapping[str, str],
    config: FactsConfig,
    max_tokens: int = 1024,
) -> NDArray[np.float64]:
    """log p(yes) - log p(no) float64 ``[n]``, of the words' first tokens behind each question.

    Where the two words begin with the same tokens (such as a lone space), those follow the
    question and the first tokens in which they differ are compared.

    Args:
        model, tokenizer: who is asked; the model is left as it was found.
        sentences: statements.
        template: ``template`` with ``{statement}``, and the words ``yes`` and ``no``.
        config: how texts become tokens.
        max_tokens: most token positions of one forward pass.

    Returns:
        NaN where a question cannot be encoded or the model gives none.

    Raises:
        UserError: the two words are the same tokens, or one of them is how the other begins.
    """
    asked: list[_Question] = []
    for i, sentence in enumerate(sentences):
        question = template["template"].replace("{statement}", sentence)
        try:
            asked.append((i, *_question(model, tokenizer, question, template, config)))
        except FactError:
            continue
    found = np.full(len(sentences), np.nan)
    device = input_device(model)
    with guest(model, grad=False):
        for index in padded_batches(model, [len(ids) for _, ids, _ in asked], max_tokens):
            batch = [asked[i] for i in index]
            longest = max(len(ids) for _, ids, _ in batch)
            padded = [ids + ids[-1:] * (longest - len(ids)) for _, ids, _ in batch]
            rows = torch.arange(len(batch), device=device)
            last = torch.tensor([len(ids) - 1 for _, ids, _ in batch], device=device)
            inputs = {"input_ids": torch.tensor(padded, device=device)}
            logits = position_logits(model, inputs, rows, last)
            words = torch.tensor([pair for _, _, pair in batch], device=device)
            pairs = logits.double().gather(-1, words)
            found[[i for i, _, _ in batch]] = (pairs[:, 0] - pairs[:, 1]).cpu().numpy()
    return found


def _question(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    template: Mapping[str, str],
    config: FactsConfig,
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The tokens that the model reads, and the two that are compared behind them."""
    length = context_length(model)
    yes, no = (
        encode_fact(tokenizer, question, template[word], config=config, max_length=length)
        for word in ("yes", "no")
    )
    for at, pair in enumerate(zip(yes.answer_ids, no.answer_ids, strict=False)):
        if pair[0] != pair[1]:
            return yes.prompt_ids + yes.answer_ids[:at], pair
    raise UserError(
        f"the words {template['yes']!r} and {template['no']!r} must differ in a token; got "
        f"{list(yes.answer_ids)} and {list(no.answer_ids)}"
    )
