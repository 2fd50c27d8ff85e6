"""How long and how surprising a prompt is to a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dkn_engine.config import FactsConfig
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.devices import input_device
from dkn_engine.models.guest import guest
from dkn_engine.types import Fact

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


def text_complexity(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, fact: Fact, config: FactsConfig
) -> tuple[int, float]:
    """Length and surprisal of the fact's prompt, by one forward pass.

    Returns:
        Number of tokens, special ones in front included; and the mean of ``-log2 p`` over those
        that have one before them, in bits, NaN for a prompt of one token.

    Raises:
        FactError: the fact cannot be encoded.
    """
    import torch

    one = encode_sequence(
        model, tokenizer, fact.prompt, fact.answer, config=config, fact_id=fact.id
    )
    ids = torch.tensor([one.ids[: one.n_prompt]], device=input_device(model))
    if one.n_prompt < 2:
        return one.n_prompt, math.nan
    with guest(model, grad=False):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
    return one.n_prompt, float(nats) / math.log(2)
