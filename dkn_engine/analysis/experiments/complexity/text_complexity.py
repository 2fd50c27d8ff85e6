"""How long and how surprising prompts are to a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dkn_engine.config import FactsConfig
from dkn_engine.errors import FactError
from dkn_engine.forward.contexts import AnswerSequence, build_contexts
from dkn_engine.forward.continuation import Tokens
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.forward.lengths import padded_batches
from dkn_engine.forward.prefill import token_log_probabilities
from dkn_engine.models.devices import input_device
from dkn_engine.models.guest import guest
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

_POSITIONS = 512  # of one forward, each with logits over the vocabulary


def text_complexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    config: FactsConfig,
) -> list[tuple[int, float] | None]:
    """Length and surprisal of each fact's prompt; None for a fact that cannot be encoded.

    The length is the number of tokens, special ones in front included; the surprisal is the mean
    of ``-log2 p`` over those that have one before them, in bits, NaN for a prompt of one token.
    """
    prompts: dict[int, Tokens] = {}
    for i, fact in enumerate(facts):
        try:
            one = encode_sequence(
                model, tokenizer, fact.prompt, fact.answer, config=config, fact_id=fact.id
            )
        except FactError:
            continue
        prompts[i] = one.ids[: one.n_prompt]
    bits = dict(zip(prompts, surprisals(model, list(prompts.values())), strict=True))
    return [(len(prompts[i]), float(bits[i])) if i in prompts else None for i in range(len(facts))]


def surprisals(model: nn.Module, texts: Sequence[Tokens]) -> NDArray[np.float64]:
    """Mean of ``-log2 p`` over each text's tokens but the first, in bits; NaN where there is none.

    The model is left as it was found.
    """
    bits = np.full(len(texts), math.nan)
    index = [i for i, ids in enumerate(texts) if len(ids) > 1]
    with guest(model, grad=False):
        for batch in padded_batches(model, [len(texts[i]) for i in index], _POSITIONS):
            some = [texts[index[b]] for b in batch]
            contexts = build_contexts(
                [AnswerSequence(ids[:-1], 1, ids[1:]) for ids in some], input_device(model)
            )
            log_p, _ = token_log_probabilities(model, contexts)
            total = torch.zeros(len(some), dtype=torch.float64)
            total.index_add_(0, contexts.sequence.cpu(), log_p.double().cpu())
            for b, nats in zip(batch, total.tolist(), strict=True):
                bits[index[b]] = -nats / (len(texts[index[b]]) - 1) / math.log(2)
    return bits
