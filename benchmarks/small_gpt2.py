"""An untrained GPT-2 of a few layers, for benchmarks that train their own models."""

from __future__ import annotations

from typing import Any


def small_gpt2(tokenizer: Any, layers: int, width: int, positions: int) -> Any:
    """Heads are 32 wide, and nothing is dropped in training; weights by torch's random numbers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=positions,
            n_embd=width,
            n_layer=layers,
            n_head=width // 32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
