"""How long a run directory takes to read with its chunks in files of their own, and compacted.

The results are made up, of the shape that the demo model gives: 30 layers, 25 neurons and 5
components a fact. ``python -m benchmarks.scale.compaction 50 500`` takes the numbers of facts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dkn_engine.config import Config
from dkn_engine.facts.scan import scan
from dkn_engine.models.fingerprint import Identity
from dkn_engine.store import RunDirectory, read_results, read_tables
from dkn_engine.store.plan import Plan
from dkn_engine.store.tables import chunk_files
from dkn_engine.types import Component, Drops, Fact, FactResult

LAYERS, NEURONS, COMPONENTS, REPEATS = 30, 25, 5, 5


def result_for(fact: Fact, rng: np.random.Generator) -> FactResult:
    """A known fact with a DKN and all controls."""
    codes = rng.choice(LAYERS * 1536, NEURONS, replace=False)
    neurons = np.stack([codes // 1536, codes % 1536], axis=1).astype(np.int32)
    drops = Drops(0.1, 0.2, rng.random(), 20, 0.01, 0.02, rng.random(), 20)
    return FactResult(
        fact.id,
        "ok",
        prompt=fact.prompt,
        answer=fact.answer,
        probability=rng.random(),
        rank=1,
        neurons=neurons,
        scores=np.sort(rng.random(NEURONS, dtype=np.float32))[::-1],
        components=tuple(
            Component(neurons[5 * i : 5 * i + 5], *rng.random(5)) for i in range(COMPONENTS)
        ),
        dkn=(0, 1),
        candidates=drops,
        controls=dict.fromkeys(("random", "paraphrases", "unrelated", "mean_ablation"), drops),
        subset_probabilities=rng.random(1 << COMPONENTS),
        subset_masks=np.arange(1 << COMPONENTS),
        convergence_delta=rng.random(LAYERS, dtype=np.float32),
        n_points=np.full(LAYERS, 7, np.int32),
        path="sweep",
    )


def seconds(path: Path) -> tuple[float, float]:
    """Least processor time of some tries to read records, and tables."""
    best = []
    for read in (read_results, read_tables):
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            read(path)
            times.append(time.process_time() - start)
        best.append(min(times))
    return best[0], best[1]


def main(counts: list[int]) -> None:
    """Print a line a number of facts."""
    config, rng = Config(), np.random.default_rng(0)
    print(
        "facts,files,records_s,tables_s,compacted_files,compacted_records_s,compacted_tables_s,compacting_s"
    )
    for n in counts:
        facts = [Fact(f"f{i}", f"The capital of country {i} is", "Rome") for i in range(n)]
        with tempfile.TemporaryDirectory() as name:
            path, size = Path(name), config.facts_per_chunk
            with RunDirectory.open(
                path,
                config=config,
                identity=Identity("made up", "none"),
                facts=scan(facts, 16 * size),
                plan=Plan(n, size),
                versions={},
            ) as run:
                for chunk in run.plan.chunks:
                    positions = range(chunk * size, chunk * size + run.plan.size(chunk))
                    results = [result_for(facts[i], rng) for i in positions]
                    run.write_chunk(chunk, chunk_files(results, positions, config.hash))
                row = [n, len(list(path.glob("*.parquet"))), *seconds(path)]
                start = time.perf_counter()
                run.compact()
                took = time.perf_counter() - start
                row += [len(list(path.glob("*.parquet"))), *seconds(path), took]
            print(",".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row), flush=True)


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [50, 200, 500, 2400])
