"""A tiny model and its tokenizer in a folder, for processes that load it by name; and facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import dkn_engine as dkn
from tests.support.tiny import tiny
from tests.support.words import text, words_tokenizer


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """The LLaMA layout of ``tests.support.tiny`` with the tokenizer of ``tests.support.words``."""
    tiny("llama", torch.float32, seed=seed).save_pretrained(folder)
    words_tokenizer().save_pretrained(folder)
    return folder


def find_alone(folder: Path, facts: list[dkn.Fact], config: dkn.Config, out: Path) -> None:
    """The life of a process that makes a run directory as one worker would, with one thread."""
    torch.set_num_threads(1)
    dkn.find_dkns(*dkn.load_model(folder, device="cpu"), facts, config, out)


def many_facts(model: Any, n: int, seed: int = 0) -> list[dkn.Fact]:
    """Facts of many lengths: half what the model says itself, half something else."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        ids = rng.integers(3, 60, size=rng.integers(2, 9)).tolist()
        with torch.no_grad():
            said = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        answer = said if i % 2 else int(rng.integers(3, 60))
        found.append(dkn.Fact(f"f{i}", text(ids), text([answer]), relation=f"r{i % 3}"))
    return found
