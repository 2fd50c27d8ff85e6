"""Every method on models whose redundancy is known by construction.

For each layout and planting, models by several seeds are trained and examined; figures are means
over a model's known facts, then over seeds with their 95 % interval. Writes
benchmarks/results/ground_truth.csv, a row a figure, after every layout and planting;
docs/ground_truth.md reads it. One thread: ``python -m benchmarks.ground_truth.run
[CELL ...]``, where a cell is such as ``gpt2-two``.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.ground_truth.examine import Figure, examine
from benchmarks.ground_truth.planted_model import Training, planted
from benchmarks.rows import read, records_csv, write_csv
from dkn_engine.statistics.intervals import mean_estimate

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "ground_truth.csv"
SEEDS = 6
CELLS = (
    Training("gpt2", "two"),
    Training("gpt2", "three"),
    Training("gpt2", "layers"),
    Training("gpt2", "twin"),
    Training("gpt2", "independent"),
    Training("llama", "two"),
    Training("llama", "twin"),
)


def rows(cell: Training, of_seed: Sequence[Sequence[Figure]]) -> Iterator[dict[str, object]]:
    """A row a figure of models that differ by seed."""
    conditions = (
        f"{cell.layers} layers of {cell.neurons} neurons; d {cell.width}; {cell.members} neurons a "
        f"group; {cell.steps} steps; torch {torch.__version__}; transformers "
        f"{transformers.__version__}"
    )
    values: dict[tuple[str, str, str], list[float]] = {}
    for figure in (one for figures in of_seed for one in figures):
        values.setdefault((figure.location, figure.method, figure.name), []).append(figure.value)
    for (location, method, name), found in values.items():
        over = mean_estimate(found)
        yield {
            "layout": cell.kind,
            "planting": cell.planting,
            "location": location,
            "method": method,
            "figure": name,
            "mean": f"{over.mean:.4g}",
            "ci_low": f"{over.ci_low:.4g}",
            "ci_high": f"{over.ci_high:.4g}",
            "seeds": over.n,
            "no_interval": over.reason,
            "conditions": conditions,
        }


def main(names: Sequence[str]) -> None:
    """Train and examine every model, or those of some cells, whose rows replace what they had."""
    torch.set_num_threads(1)
    table: dict[str, list[Mapping[str, object]]] = {}
    for row in read(OUTPUT.name) if names else ():
        table.setdefault(f"{row['layout']}-{row['planting']}", []).append(row)
    for cell in CELLS:
        if names and cell.name not in names:
            continue
        start = time.process_time()
        of_seed = [examine(planted(dataclasses.replace(cell, seed=seed))) for seed in range(SEEDS)]
        table[cell.name] = list(rows(cell, of_seed))
        write_csv(OUTPUT, records_csv([row for one in CELLS for row in table.get(one.name, [])]))
        print(cell.name, f"{time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
