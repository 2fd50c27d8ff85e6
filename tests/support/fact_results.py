"""Made-up results with consistent figures, for pages and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from dkn_engine.neurons import adjacent_pairs
from dkn_engine.types import Component, Drops, FactResult

LAYERS = 6


def known(
    fact_id: str, q: int = 3, dkn: tuple[int, ...] = (0, 2), seed: int = 0, **fields: Any
) -> FactResult:
    """A known fact whose ``q`` components cost 20 % of the probability each, all subsets there."""
    rng = np.random.default_rng(seed)
    n = 3 * q + 4
    codes = np.sort(rng.choice(LAYERS * 50, size=n, replace=False))
    neurons = np.stack([codes // 50, codes % 50], axis=1).astype(np.int32)
    components = tuple(
        Component(neurons[3 * i : 3 * i + 3], 0.1 * (i + 1), 1.0 + i, 0.9 * (i + 1), 0.4, 0.2)
        for i in range(q)
    )
    masks = np.arange(1 << q)
    values: dict[str, Any] = {
        "prompt": f"The capital of {fact_id} is",
        "answer": "Rome",
        "relation": "capital",
        "probability": 0.5,
        "rank": 1,
        "neurons": neurons,
        "scores": np.linspace(1, 0.1, n, dtype=np.float32),
        "connection_weights": rng.normal(size=len(adjacent_pairs(neurons))).astype(np.float32),
        "components": components,
        "subset_probabilities": 0.5 * 0.8 ** np.array([m.bit_count() for m in masks.tolist()]),
        "subset_masks": masks,
        "dkn": dkn,
        "partial_drop": 0.2,
        "full_drop": 0.36 + 0.01 * seed,
        "redundancy": 1.25,
        "excess": 0.15,
        "candidates": Drops(0.3, 0.488, 1.0, excess=0.0, n_redundancy=1),
        "controls": {
            "random": Drops(0.01, 0.02, 1.0, 20, 0.01, 0.02, 0.01, 18),
            "paraphrases": Drops(0.1, 0.2, 1.1, 3, 0.05, 0.06, 0.02, 3),
        },
        "convergence_delta": np.full(LAYERS, 1e-5, np.float32),
        "n_points": np.full(LAYERS, 4, np.int32),
        "path": "sweep",
    }
    return FactResult(fact_id, "ok", **(values | fields))


def several() -> list[FactResult]:
    """A fact of every kind."""
    return [
        known("a"),
        known("b", q=2, dkn=(), seed=1, relation="country"),
        known("c", q=5, dkn=(1, 3), seed=2),
        FactResult(
            "d", "not_known", "rank 12", prompt="The capital of d is", answer="Oslo", rank=12
        ),
        FactResult("e", "skipped", "prompt is too long", prompt="x " * 40, answer="Oslo"),
        FactResult("f", "error", "NaN in layer 3"),
        known("g", q=0, dkn=(), candidates=None, controls={}),
    ]
