"""A LLaMA with random weights, built where it runs, and facts that it knows.

Nothing is downloaded. The facts are what the model itself says behind packaged prompts, so that the
whole of ``find`` has work to do; what they say is of no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import dkn_engine as dkn
from benchmarks.scale.templama_model import bpe_tokenizer

LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
TINY: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Deviation of the logits: one of 32,000 tokens then gets a probability like that of a known answer.
SHARPNESS = 5.0


def random_llama(shape: dict[str, Any], device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer; weights are drawn on the device.

    Only tokens that are a space and a word can be answers: the head's other rows are zero.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = bpe_tokenizer(dkn.load_facts("demo"), shape["vocab_size"])
    end = tokenizer.eos_token_id
    config = LlamaConfig(**shape, bos_token_id=end, eos_token_id=end, tie_word_embeddings=False)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        head = model.get_output_embeddings().weight
        head *= SHARPNESS
        words = torch.tensor(word_tokens(tokenizer), device=device)
        kept = torch.zeros(len(head), dtype=torch.bool, device=device)
        kept[words] = True
        head[~kept] = 0
    return model, tokenizer


def word_tokens(tokenizer: Any) -> list[int]:
    """Tokens that are a space and letters, and that their own text gives again."""
    tokens = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if text[:1] == " " and text[1:].isalpha() and text[1:].isascii():
            tokens.append(token)
    return tokens


@torch.no_grad()
def known_facts(model: Any, tokenizer: Any, prompts: Sequence[str], n_tokens: int) -> list[Any]:
    """A fact a prompt: its answer is what the model says behind it, ``n_tokens`` long.

    Prompts whose answer is tokenised otherwise than it was said are left out.
    """
    facts, device = [], next(model.parameters()).device
    for i, prompt in enumerate(prompts):
        ids: list[int] = tokenizer(prompt)["input_ids"]
        said: list[int] = []
        for _ in range(n_tokens):
            logits = model(input_ids=torch.tensor([ids + said], device=device)).logits
            said.append(int(logits[0, -1].argmax()))
        answer = tokenizer.decode(said)
        if tokenizer(prompt + answer)["input_ids"] == ids + said:
            facts.append(dkn.Fact(f"random-{i}", prompt, answer.strip()))
    return facts
