"""Decoders that look ahead are refused: their answers leak into the positions before them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.causality import require_causal
from dkn_engine.models.layout import find_layout
from tests.support.guests import state
from tests.support.tiny import FAMILIES, ODD_NORMS, tiny
from tests.support.words import words_tokenizer

FACT = dkn.Fact("a", "w5 w9 w11", "w13 w14")


def not_causal() -> Any:
    """By the switch of transformers' masks."""
    return tiny("llama", torch.float32, is_causal=False)


def gemma_of_embeddings() -> Any:
    """As in EmbeddingGemma."""
    return tiny("gemma3", torch.float32, use_bidirectional_attention=True)


def one_layer() -> Any:
    """By a module, which no configuration tells of."""
    model = tiny("gpt2", torch.float32)

    def mean(_module: Any, _args: Any, y: tuple[Any, ...]) -> Any:
        return (y[0] + 0.1 * y[0].mean(1, keepdim=True), *y[1:])

    model.transformer.h[1].attn.register_forward_hook(mean)
    return model


CASES = (not_causal, gemma_of_embeddings, one_layer)


@pytest.mark.parametrize("make", CASES)
def test_they_really_look_ahead(make: Any) -> None:
    """So that the cases are what they are for: the last token changes an earlier position."""
    model, ids = make(), torch.tensor([[5, 9, 11, 13], [5, 9, 11, 14]])
    one, other = model(input_ids=ids).logits.detach()
    assert float((one[0] - other[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_verb_refuses_them(make: Any, dtype: torch.dtype) -> None:
    model, tokenizer = make().to(dtype), words_tokenizer()
    before = state(model) if dtype == torch.float32 else None
    for call in (
        lambda: dkn.attribute(model, tokenizer, [FACT]),
        lambda: dkn.find_dkns(model, tokenizer, [FACT]),
        lambda: dkn.answer_probability(model, tokenizer, [FACT]),
    ):
        with pytest.raises(UnsupportedModelError, match=r"expected a causal decoder.* by \d") as e:
            call()
        assert "\n" not in str(e.value)
    assert before is None or state(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES | ODD_NORMS)
def test_causal_decoders_pass(name: str, dtype: torch.dtype) -> None:
    require_causal(find_layout(tiny(name, dtype)))


def test_a_model_that_gives_nan_is_not_called_bidirectional() -> None:
    model = tiny("llama", torch.float32)
    model.lm_head.weight.data[3] = float("nan")
    require_causal(find_layout(model))


def test_a_short_context_is_enough() -> None:
    model = tiny("gpt2", torch.float32, n_positions=3)
    require_causal(find_layout(model))
    with pytest.raises(UnsupportedModelError, match="expected a causal decoder"):
        require_causal(find_layout(tiny("llama", max_position_embeddings=2, is_causal=False)))
