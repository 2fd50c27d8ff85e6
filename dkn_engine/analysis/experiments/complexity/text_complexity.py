"""How long and how surprising a prompt is to a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dkn_engine.config import FactsConfig
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.guest import guest
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TextComplexity:
    """Of one prompt under a model.

    Attributes:
        n_tokens: special tokens in front included.
        surprisal: mean of ``-log2 p`` over the tokens that have one before them, in bits; NaN for
            a prompt of one token.
    """

    n_tokens: int
    surprisal: float


def text_complexity(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, fact: Fact, config: FactsConfig
) -> TextComplexity:
    """Length and mean surprisal of the fact's prompt, by one forward pass.

    Raises:
        FactError: the fact cannot be encoded.
    """
    import torch

    one = encode_sequence(
        model, tokenizer, fact.prompt, fact.answer, config=config, fact_id=fact.id
    )
    ids = torch.tensor([one.ids[: one.n_prompt]], device=next(model.parameters()).device)
    if one.n_prompt < 2:
        return TextComplexity(one.n_prompt, math.nan)
    with guest(model, grad=False):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    return TextComplexity(one.n_prompt, float(nats) / math.log(2))
