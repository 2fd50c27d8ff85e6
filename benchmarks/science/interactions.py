"""How well gradients estimate the interactions of neurons, beside suppressing every pair.

For each demo fact that the model knows, the interactions of its knowledge neurons of the highest
scores, by both methods of ``dkn.interactions``: rank correlation over pairs, the error, its size
beside the interactions' own spread, and processor time. Writes
benchmarks/results/interactions.csv, a row a fact; docs/interactions.md reads it. One thread:
``python -m benchmarks.science.interactions [N facts]``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import dkn_engine as dkn
from benchmarks.rows import records_csv, write_csv

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "interactions.csv"
MOST_NEURONS = 40


@dataclass(frozen=True)
class Compared:
    """Estimated beside exact interactions of one fact's neurons.

    ``spread`` is the standard deviation of the exact ones, ``rmse`` the estimate's error, both in
    nats; ``covering`` the share of pairs above 0.01 nats, ``in_series`` of those below -0.01.
    """

    fact: str
    neurons: int
    spearman: float
    rmse: float
    spread: float
    covering: float
    in_series: float
    exact_seconds: float
    gradient_seconds: float


def compare(model: Any, tokenizer: Any, fact: dkn.Fact, neurons: np.ndarray) -> Compared:
    """Both methods on one fact."""
    matrices, seconds = {}, {}
    for method in ("exact", "gradient"):
        started = time.process_time()
        (one,) = dkn.interactions(model, tokenizer, [fact], neurons, method=method)
        seconds[method] = time.process_time() - started
        matrices[method] = one.matrix[np.triu_indices(len(neurons), 1)]
    exact, estimate = matrices["exact"], matrices["gradient"]
    return Compared(
        fact.id,
        len(neurons),
        round(float(spearmanr(exact, estimate).statistic), 4),
        round(float(np.sqrt(np.mean((exact - estimate) ** 2))), 5),
        round(float(exact.std()), 5),
        round(float((exact > 0.01).mean()), 4),
        round(float((exact < -0.01).mean()), 4),
        round(seconds["exact"], 3),
        round(seconds["gradient"], 3),
    )


def main(limit: int | None = None) -> None:
    """Compare on the demo facts, and write the table after every fact."""
    torch.set_num_threads(1)
    model, tokenizer = dkn.load_model("demo")
    facts = {fact.id: fact for fact in dkn.load_facts("demo", limit=limit)}
    without = dkn.FilterConfig(n_random=0, n_regrouped=0, n_unrelated=0)
    rows: list[Compared] = []
    for result in dkn.iter_dkns(model, tokenizer, facts.values(), dkn.Config(filter=without)):
        if result.status != "ok":
            continue
        best = np.argsort(-result.scores, kind="stable")[:MOST_NEURONS]
        rows.append(compare(model, tokenizer, facts[result.fact_id], result.neurons[best]))
        write_csv(OUTPUT, records_csv([asdict(one) for one in rows]))
        print(rows[-1])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
