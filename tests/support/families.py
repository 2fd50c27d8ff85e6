"""A tiny model with random weights of every causal architecture that transformers knows."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.tiny import VOCABULARY, redraw

# Sizes by the names that configurations give them.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "projection_dim"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "dim_ff", "dff", "ffn_hidden_size"), 40
    ),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size", "mlp_dim"), 40),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers"), 3),
    **dict.fromkeys(("num_encoder_layers", "depth"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "dim_head", "kv_channels"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length"), 64),
    **dict.fromkeys(("max_seq_len", "max_sequence_length", "context_length"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "first_k_dense_replace": 1,  # as the published ones: dense layers below mixtures of experts
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rotary_dim": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    "linear_num_key_heads": 2,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    "is_decoder": True,
}
_GEMMA4 = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "head_dim": 8,
    "global_head_dim": 8,
    "num_key_value_heads": 2,
}
# Of a quarter of a head, for positions in time, height and width.
_MROPE = {
    "text_config": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    }
}
_WITH_MROPE = ["glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl"]
_WITH_MROPE += ["qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl"]
# What single ones need beside.
_MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _GEMMA4),
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0] * 3,
        "intermediate_size": [40] * 3,
    },
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "dots1": {"n_shared_experts": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    **dict.fromkeys(_WITH_MROPE, _MROPE),
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "zaya": {"num_experts_per_tok": 1},
}


def families() -> dict[str, str]:
    """The class of each architecture's causal language model, by its kind."""
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    return {kind: name if isinstance(name, str) else name[0] for kind, name in named}


def options(kind: type[Any], more: dict[str, Any]) -> dict[str, Any]:
    """What makes a configuration of a kind tiny, and those of its parts."""
    default = kind()
    found = {name: size for name, size in _SIZES.items() if _takes(default, name)}
    if "qk_rope_head_dim" in found:
        found.pop("head_dim", None)  # which follows from the parts
        found["num_key_value_heads"] = _SIZES["num_attention_heads"]
    for part in getattr(kind, "sub_configs", {}):
        own = getattr(default, part, None)
        if own is not None:
            found[part] = options(type(own), more.get(part, {}))
    parts = getattr(kind, "sub_configs", {})
    return {**found, **{name: size for name, size in more.items() if name not in parts}}


def _takes(default: Any, name: str) -> bool:
    if isinstance(getattr(type(default), name, None), property):
        return False
    try:
        return hasattr(default, name)
    except Exception:  # of its own: layers differ in it
        return False


def family(kind: str, dtype: torch.dtype = torch.float64, name: str = "") -> nn.Module:
    """The model, in eval mode; raises what transformers raises where it cannot be made so small.

    ``name`` is that of another class than :func:`families` has.
    """
    model_class = getattr(transformers, name or families()[kind])
    # Of a model with pictures or sounds the part that its language model takes.
    config_class = model_class.config_class or CONFIG_MAPPING[kind]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        config = config_class(**options(config_class, _MORE.get(kind, {})))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = model_class(config)
            with contextlib.suppress(ValueError, AttributeError):  # it has no experts
                model.set_experts_implementation("eager")  # the default has no float64
    redraw(model)
    return model.to(dtype).eval()  # type: ignore[no-any-return]  # of transformers
