"""Tiny decoders with random weights, one a layout, and sequences for them.

Everything that a test needs to know about a model's parts stands here by name, so that no oracle
depends on ``dkn_engine.models.layout``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dkn_engine.forward.contexts import AnswerSequence

VOCABULARY = 61
N_LAYERS = 3
MASK_ID = 60
WIDTH = 40  # F, of every tiny model


@dataclass(frozen=True)
class Family:
    """A model class with its configuration, and where its parts are (``{}``: the layer)."""

    model: str
    config: str
    options: dict[str, Any]
    down: str
    act: str


def rotary(**more: Any) -> dict[str, Any]:
    """The spelling of most decoders; heads of width 6, two of keys for four of queries."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": WIDTH,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def _family(name: str, act: str = "act_fn", **more: Any) -> Family:
    layer = "model.layers.{}.mlp."
    options = rotary(**more)
    return Family(f"{name}ForCausalLM", f"{name}Config", options, f"{layer}down_proj", layer + act)


_GEMMA: dict[str, Any] = {"query_pre_attn_scalar": 6, "sliding_window": 64}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": N_LAYERS, "n_head": 4, "n_inner": WIDTH}
_GPT |= {"n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        _GPT,
        "transformer.h.{}.mlp.c_proj",
        "transformer.h.{}.mlp.act",
    ),
    "llama": _family("Llama"),
    "qwen3": _family("Qwen3"),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        rotary(layer_types=["sliding_attention", "full_attention", "sliding_attention"], **_GEMMA),
        "model.layers.{}.mlp.down_proj",
        "model.layers.{}.mlp.act_fn",
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {k: v for k, v in rotary().items() if k not in {"num_key_value_heads", "head_dim"}},
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "gpt_neox.layers.{}.mlp.act",
    ),
    "phi3": _family("Phi3", act="activation_fn"),
    "mistral": _family("Mistral", sliding_window=3),
    "olmo2": _family("Olmo2"),
    "smollm3": _family("SmolLM3"),
    "nemotron": _family("Nemotron"),  # no gate: up_proj feeds the non-linearity
    "starcoder2": Family(
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        {k: v for k, v in rotary(sliding_window=3).items() if k != "head_dim"},
        "model.layers.{}.mlp.c_proj",
        "model.layers.{}.mlp.act",
    ),
    "phi": Family(
        "PhiForCausalLM",
        "PhiConfig",
        {
            **{k: v for k, v in rotary().items() if k != "head_dim"},
            "num_attention_heads": 3,
            "num_key_value_heads": 3,  # half of 8 is rotated
        },
        "model.layers.{}.mlp.fc2",
        "model.layers.{}.mlp.activation_fn",
    ),
    "granite": _family(
        "Granite", logits_scaling=3.0, residual_multiplier=0.6, attention_multiplier=0.3
    ),
    "gemma2": _family("Gemma2", attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **_GEMMA),
    "gptj": Family(
        "GPTJForCausalLM",
        "GPTJConfig",
        {**_GPT, "rotary_dim": 4},
        "transformer.h.{}.mlp.fc_out",
        "transformer.h.{}.mlp.act",
    ),
    "falcon": Family(
        "FalconForCausalLM",
        "FalconConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "ffn_hidden_size": WIDTH,
            "num_hidden_layers": N_LAYERS,
            "num_attention_heads": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "transformer.h.{}.mlp.dense_4h_to_h",
        "transformer.h.{}.mlp.act",
    ),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {k: v for k, v in rotary(ffn_dim=WIDTH, word_embed_proj_dim=24).items() if k != "head_dim"},
        "model.decoder.layers.{}.fc2",
        "model.decoder.layers.{}.activation_fn",
    ),
    "gpt_neo": Family(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "intermediate_size": WIDTH,
            "num_layers": N_LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "transformer.h.{}.mlp.c_proj",
        "transformer.h.{}.mlp.act",
    ),
}

_LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
_LINEAR |= {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
_LINEAR |= {"linear_key_head_dim": 6, "linear_value_head_dim": 6}


def _text(name: str, **more: Any) -> Family:
    """A decoder whose configuration is the text part of a larger one's."""
    return replace(_family(name, **more), config=f"{name}TextConfig")


# Decoders whose norms are not what their class's name says: Gemma 4 multiplies by its weight, the
# others, without Gemma in front of their name, by 1 more.
ODD_NORMS: dict[str, Family] = {
    "gemma4": _text(
        "Gemma4",
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        sliding_window=64,
        global_head_dim=6,
        hidden_size_per_layer_input=0,
    ),
    "vaultgemma": _family("VaultGemma", **_GEMMA),
    "qwen3_5": _text("Qwen3_5", **_LINEAR),
    "qwen3_next": _family("Qwen3Next", num_experts=0, **_LINEAR),
}

# The norm whose output the MLP reads. OLMo 2 normalises what an MLP writes.
NORMS: dict[str, str | None] = {
    "gpt2": "transformer.h.{}.ln_2",
    "gpt_neo": "transformer.h.{}.ln_2",
    "gptj": "transformer.h.{}.ln_1",  # beside the attention, which reads it too
    "falcon": "transformer.h.{}.input_layernorm",
    "phi": "model.layers.{}.input_layernorm",
    "gpt_neox": "gpt_neox.layers.{}.post_attention_layernorm",
    "opt": "model.decoder.layers.{}.final_layer_norm",
    "olmo2": None,
    **dict.fromkeys(
        ("gemma2", "gemma3", "gemma4", "vaultgemma"), "model.layers.{}.pre_feedforward_layernorm"
    ),
    **dict.fromkeys(
        ("llama", "qwen3", "qwen3_5", "qwen3_next", "phi3", "mistral", "smollm3", "nemotron"),
        "model.layers.{}.post_attention_layernorm",
    ),
    **dict.fromkeys(("starcoder2", "granite"), "model.layers.{}.post_attention_layernorm"),
}


def tiny(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
    """A model of the family in eval mode; ``changes`` go into its configuration."""
    family = (FAMILIES | ODD_NORMS)[name]
    config = getattr(transformers, family.config)(**{**family.options, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # some draw vectors, too, which redraw only moves
        model = getattr(transformers, family.model)(config)
    redraw(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def with_long_stream(model: Any) -> Any:
    """The model with embeddings so long that every MLP's output is little beside the stream.

    Tied logits stay as they were, since only what is embedded takes the new table.
    """
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(100 * embedding.weight)
    return model


def redraw(model: nn.Module, seed: int = 0) -> None:
    """Weights large enough that every layer and every attention weight matters.

    The libraries' own initialisation (0.02) leaves a decoder almost linear and its answers uniform.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * 2 / parameter.shape[-1] ** 0.5)


def down_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(FAMILIES[name].down.format(layer))


def act_of(name: str, model: nn.Module, layer: int) -> nn.Module:
    return model.get_submodule(FAMILIES[name].act.format(layer))


def norm_of(name: str, model: Any, layer: int) -> Any:
    """The norm in front of the layer's MLP, if there is one."""
    path = NORMS[name]
    return None if path is None else model.get_submodule(path.format(layer))


def sequences() -> list[AnswerSequence]:
    """Answers of two, one and three tokens behind prompts of five, two and seven."""
    return [sequence(5, 2, seed=1), sequence(2, 1, seed=2), sequence(7, 3, seed=3)]


def sequence(n_prompt: int, n_answer: int, seed: int = 0) -> AnswerSequence:
    random = torch.Generator().manual_seed(seed)
    # Tokens 0 to 2 are special in some of the models.
    drawn = torch.randint(3, MASK_ID, (n_prompt + n_answer,), generator=random).tolist()
    return AnswerSequence(tuple(drawn[:-1]), n_prompt, tuple(drawn[n_prompt:]))


def relative_error(found: Any, expected: Any) -> float:
    """``|found - expected| / |expected|`` in the L2 norm; shapes must be equal."""
    found, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (found, expected))
    assert found.shape == expected.shape
    difference: Tensor = torch.linalg.vector_norm(found - expected)
    return float(difference / torch.linalg.vector_norm(expected))
