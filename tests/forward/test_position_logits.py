"""Logits at some places are those of whole passes, of which the head projects no other place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dkn_engine.forward.position_logits import position_logits
from tests.support.seq2seq_families import encoder_decoder
from tests.support.tiny import FAMILIES, VOCABULARY, tiny
from tests.support.tiny_encoders import ENCODERS, tiny_encoder

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [17, 18, 19, 20, 21, 22]])
SEQUENCE, POSITION = torch.tensor([2, 0, 0, 2]), torch.tensor([1, 5, 2, 2])


def read(name: str) -> tuple[Any, dict[str, Tensor]]:
    if name in FAMILIES:
        return tiny(name), {"input_ids": IDS}
    if name in ENCODERS:
        return tiny_encoder(name), {"input_ids": IDS}
    return encoder_decoder(name), {"input_ids": IDS.flip(1), "decoder_input_ids": IDS}


def rows_of_the_head(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, list[int]]:
    """The logits, and how many positions were projected; hooks cannot see it, so by the weight."""
    seen: list[int] = []
    weight, plain = model.get_output_embeddings().weight, torch.nn.functional.linear

    def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
        if w is weight:
            seen.append(x.shape[:-1].numel())
        return plain(x, w, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", linear)
        found = position_logits(model, inputs, SEQUENCE, POSITION)
    return found, seen


@pytest.mark.parametrize("name", [*FAMILIES, *ENCODERS, "t5", "bart"])
@torch.no_grad()
def test_logits_are_those_of_the_whole_pass(name: str) -> None:
    model, inputs = read(name)
    expected = model(**inputs).logits[SEQUENCE, POSITION]
    for _ in range(2):
        found, seen = rows_of_the_head(model, inputs)
        assert seen in ([len(POSITION)], [])  # DeBERTa multiplies by its embeddings itself
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_go_through() -> None:
    model = tiny("llama")
    found, expected = (
        torch.autograd.grad(logits.sum(), model.model.layers[0].mlp.down_proj.weight)[0]
        for logits in (
            position_logits(model, {"input_ids": IDS}, SEQUENCE, POSITION),
            model(input_ids=IDS).logits[SEQUENCE, POSITION],
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


class OwnHead(nn.Linear):
    """Adds to each logit what stands in front of it, which rows of their own would lack."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).cumsum(1)


def with_hook(model: Any) -> None:
    model.lm_head.register_forward_pre_hook(lambda _m, args: (args[0].cumsum(1),))


def with_own_forward(model: Any) -> None:
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: plain(x).cumsum(1)


def with_own_head(model: Any) -> None:
    head = OwnHead(model.config.hidden_size, VOCABULARY, bias=False).double()
    head.load_state_dict(model.lm_head.state_dict())
    model.lm_head = head


@pytest.mark.parametrize("change", [with_hook, with_own_forward, with_own_head])
@torch.no_grad()
def test_a_head_that_may_mix_positions_gets_them_as_the_model_gives_them(change: Any) -> None:
    model = tiny("gpt2")
    change(model)
    # GPT-2 gives its head the positions that are kept, of every sequence.
    expected = model(input_ids=IDS, logits_to_keep=torch.tensor([1, 2, 5])).logits
    found = position_logits(model, {"input_ids": IDS}, SEQUENCE, POSITION)
    torch.testing.assert_close(found, expected[SEQUENCE, torch.tensor([0, 2, 1, 1])])


@pytest.mark.parametrize("how", ["fails", "spreads"])
@torch.no_grad()
def test_a_model_that_goes_on_by_sequence_is_asked_plainly_from_then_on(how: str) -> None:
    """Behind its head it adds something to each sequence, which does not fit, or does too well."""
    model = tiny("llama")
    expected, plain, passes = model(input_ids=IDS).logits[SEQUENCE, POSITION], model.forward, []

    def forward(input_ids: Tensor, **kw: Any) -> Any:
        passes.append(1)
        out = plain(input_ids=input_ids, **kw)
        places = out.logits.shape[1] if how == "spreads" else IDS.shape[1]
        out.logits = out.logits + out.logits.new_zeros(len(input_ids), places, 1)
        return out

    model.forward = forward
    for more in (2, 1, 1):
        passes.clear()
        found = position_logits(model, {"input_ids": IDS}, SEQUENCE, POSITION)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert len(passes) == more


def test_an_error_of_the_models_own_is_raised() -> None:
    model = tiny("llama")
    model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        position_logits(model, {"input_ids": IDS}, SEQUENCE, POSITION)
    assert not model.lm_head._forward_pre_hooks
