"""The comparison of clusterers in docs/clusterers.md: NTC beside the others on the demo facts.

The same as ``dkn-engine analyze clusterers --model demo --facts demo --draws 10``. Writes
benchmarks/results/clusterers.csv (a row for each clusterer and figure, then the paired differences
to NTC) and clusterers_facts.csv (a row for each fact and clusterer). Run it alone:
``python -m benchmarks.science.clusterers``.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

import dkn_engine as dkn
from dkn_engine.analysis import compare_clusterers
from dkn_engine.analysis.experiments.clusterers import text as clusterers_text
from dkn_engine.cli.compare_clusterers import write_clusterers

RESULTS = Path(__file__).resolve().parents[1] / "results"
DRAWS = 10


def main() -> None:
    """Compare on the demo facts and write both tables."""
    torch.set_num_threads(1)
    model, tokenizer = dkn.load_model("demo", device="cpu")
    start = time.perf_counter()
    comparison = compare_clusterers(model, tokenizer, dkn.load_facts("demo"), n_draws=DRAWS)
    print(clusterers_text.render(comparison))
    print(f"{time.perf_counter() - start:.0f} s")
    write_clusterers(RESULTS, comparison)


if __name__ == "__main__":
    main()
