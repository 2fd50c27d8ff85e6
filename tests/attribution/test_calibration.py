"""The adaptive rule's estimated error against the true one, over many facts of tiny models."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dkn_engine.config import AttributionConfig
from tests.support.attribution_runs import BLOCKS, attributed
from tests.support.tiny import sequence, tiny

# Layouts whose rows are swept: blocks integrate the same curves.
NAMES = ("gpt2", "llama", "qwen3", "gemma3", "gpt_neox", "phi3", "phi", "starcoder2", "granite")
N_FACTS = 12
TOLERANCE = 1e-3
# To 1e-7 of what 256 points give, in the least smooth of these layouts.
DENSE = AttributionConfig(quadrature="gauss_legendre", n_steps=64)


def errors(name: str, seed: int, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and estimated relative error, and points a layer and token, of N_FACTS facts each."""
    model = tiny(name, seed=seed)
    facts = [sequence(3 + i % 5, 1 + i % 2, seed=100 * seed + i) for i in range(N_FACTS)]
    found = attributed(name, model, AttributionConfig(tolerance=TOLERANCE, **options), facts)
    truth = attributed(name, model, dataclasses.replace(DENSE, **options), facts).scores
    apart = np.linalg.norm(found.scores - truth, axis=(1, 2))
    tokens = np.array([len(f.targets) for f in facts])
    error = apart / np.linalg.norm(truth, axis=(1, 2))
    return error, found.error.astype(np.float64), found.n_points.mean(1) / tokens


def test_true_errors_are_within_tolerance_and_estimates_bound_them() -> None:
    """Of at least 99 % of 216 facts, nine layouts and two draws of weights."""
    assert not set(NAMES) & set(BLOCKS)
    runs = [errors(name, seed) for name in NAMES for seed in (0, 1)]
    error, estimate, _ = (np.concatenate(column) for column in zip(*runs, strict=True))
    assert len(error) == 216
    assert (error <= TOLERANCE).mean() >= 0.99
    assert (error <= estimate).mean() >= 0.99
