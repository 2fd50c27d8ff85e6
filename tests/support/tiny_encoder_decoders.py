"""Tiny encoder-decoders with random weights, and what they are asked."""

from __future__ import annotations

from typing import Any

from torch import nn

from dkn_engine.forward.contexts import AnswerSequence
from tests.support.seq2seq_families import encoder_decoder

T5 = {"decoder_start_token_id": 0}
# Kind, changes of its configuration, what is in front of a projection out of the decoder's MLP.
MODELS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "t5": ("t5", T5, "decoder.block.{}.layer.2.DenseReluDense", "wo act"),
    "t5-gated": (
        "t5",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "decoder.block.{}.layer.2.DenseReluDense",
        "wo act",
    ),
    **{
        kind: (kind, {}, "model.decoder.layers.{}", "fc2 activation_fn")
        for kind in ("bart", "mbart", "marian", "pegasus")
    },
}


def model_of(name: str) -> Any:
    kind, changes, _, _ = MODELS[name]
    return encoder_decoder(kind, **changes)


def asked() -> list[AnswerSequence]:
    """Answers of one, two and three tokens; encoders' inputs of five, five and eight tokens."""
    return [
        AnswerSequence((0, 9), 2, (12,), source=(3, 20, 9, 30, 2), blank=(2,)),
        AnswerSequence((0, 9, 5, 6), 3, (6, 21), source=(7, 11, 9, 13, 2), blank=(2,)),
        AnswerSequence((0, 17, 8, 4), 2, (8, 4, 33), source=(5, 11, 9, 13, 5, 4, 17, 2)),
    ]


def down_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    """The projection out of a layer's MLP in the decoder."""
    _, _, path, parts = MODELS[name]
    return model.get_submodule(f"{path.format(layer)}.{parts.split()[0]}")


def act_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    """The non-linearity of a layer's MLP in the decoder."""
    _, _, path, parts = MODELS[name]
    return model.get_submodule(f"{path.format(layer)}.{parts.split()[1]}")
