"""Tiny encoders with a masked-LM head and random weights, one a layout, and sentences for them.

As in ``tiny.py``, every part that a test needs stands here by name.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from dkn_engine.forward.contexts import AnswerSequence
from tests.support.tiny import MASK_ID, N_LAYERS, VOCABULARY, WIDTH, Family, redraw

CLS, SEP = 1, 2


def _options(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": WIDTH,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": CLS,
        "eos_token_id": SEP,
        **more,
    }


def _bert(name: str, stack: str, **more: Any) -> Family:
    layer = f"{stack}.encoder.layer.{{}}."
    return Family(
        f"{name}ForMaskedLM",
        f"{name}Config",
        _options(**more),
        f"{layer}output.dense",
        f"{layer}intermediate.intermediate_act_fn",
    )


ENCODERS: dict[str, Family] = {
    "bert": _bert("Bert", "bert"),
    "roberta": _bert("Roberta", "roberta"),
    "electra": _bert("Electra", "electra", embedding_size=20),
    "deberta_v2": _bert(
        "DebertaV2",
        "deberta",
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        conv_kernel_size=3,
        type_vocab_size=0,
    ),
    "distilbert": Family(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 24,
            "hidden_dim": WIDTH,
            "n_layers": N_LAYERS,
            "n_heads": 4,
            "max_position_embeddings": 64,
        },
        "distilbert.transformer.layer.{}.ffn.lin2",
        "distilbert.transformer.layer.{}.ffn.activation",
    ),
    # A full layer, then two that see two tokens to each side; its MLP is gated.
    "modernbert": Family(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        _options(
            local_attention=4,
            global_attn_every_n_layers=3,
            cls_token_id=CLS,
            sep_token_id=SEP,
        ),
        "model.layers.{}.mlp.Wo",
        "model.layers.{}.mlp.act",
    ),
    # As many groups as layers: each application of the one layer is a layer of its own.
    "albert": Family(
        "AlbertForMaskedLM",
        "AlbertConfig",
        _options(embedding_size=20, num_hidden_groups=N_LAYERS),
        "albert.encoder.albert_layer_groups.{}.albert_layers.0.ffn_output",
        "albert.encoder.albert_layer_groups.{}.albert_layers.0.activation",
    ),
}


def tiny_encoder(
    name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any
) -> Any:
    """A model of the family in eval mode; ``changes`` go into its configuration."""
    family = ENCODERS[name]
    config = getattr(transformers, family.config)(**{**family.options, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, family.model)(config)
    redraw(model, seed)
    return model.to(dtype).eval()


def down_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(ENCODERS[name].down.format(layer))


def act_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(ENCODERS[name].act.format(layer))


def masked(n_before: int, n_answer: int, n_after: int, seed: int = 0) -> AnswerSequence:
    """A sentence whose answer's tokens are predicted with all of them masked."""
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(3, MASK_ID, (n_before + n_answer + n_after,), generator=random).tolist()
    before, answer = drawn[:n_before], drawn[n_before : n_before + n_answer]
    ids = (CLS, *before, *[MASK_ID] * n_answer, *drawn[n_before + n_answer :], SEP)
    first = 1 + n_before
    masks = tuple(range(first, first + n_answer))
    return AnswerSequence(ids, len(ids), tuple(answer), masks=masks)


def left_to_right(one: AnswerSequence) -> AnswerSequence:
    """The same sentence, each token predicted with those of the answer before it filled in."""
    steps = []
    for i in range(len(one.targets)):
        ids = list(one.ids)
        for at, token in list(zip(one.masks, one.targets, strict=True))[:i]:
            ids[at] = token
        steps.append(tuple(ids))
    return AnswerSequence(one.ids, one.n_prompt, one.targets, tuple(steps), masks=one.masks)


def sentences() -> list[AnswerSequence]:
    """Answers of two, one and three tokens, in the middle, at the end and at the beginning."""
    return [masked(3, 2, 2, seed=1), masked(4, 1, 0, seed=2), masked(0, 3, 5, seed=3)]
