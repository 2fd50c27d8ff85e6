"""For a process of its own: a run over N facts of a file without a model; prints peak MiB.

Everything but the model is real: the loader, windows, the run directory, the summary.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dkn_engine.cli.results import read_overview
from dkn_engine.config import Config
from dkn_engine.facts.scan import FactFile
from dkn_engine.models.fingerprint import Identity
from dkn_engine.run.pipeline import Files, on_disk, prepare
from dkn_engine.run.tasks import Task
from dkn_engine.store.tables import chunk_files
from dkn_engine.types import Fact, FactResult
from tests.support.words import words_tokenizer

CONFIG = Config(facts_per_chunk=50)


def result_for(fact: Fact) -> FactResult:
    """A result of sixteen kilobytes."""
    return FactResult(
        fact.id,
        "ok",
        prompt=fact.prompt,
        answer=fact.answer,
        probability=0.5,
        rank=1,
        subset_probabilities=np.ones(1024),
        subset_masks=np.arange(1024),
    )


def compute(tasks: Iterator[Task]) -> Iterator[tuple[int, Files]]:
    for task in tasks:
        results = [result_for(fact) for fact in task.facts]
        yield task.chunk, chunk_files(results, task.positions, CONFIG.hash)


def main(file: str, out: str, limit: str) -> None:
    run = prepare(FactFile(file, limit=int(limit)), CONFIG)
    results = on_disk(run, Path(out), Identity("abc", "tiny"), words_tokenizer(), compute, None)
    overview = read_overview(results)
    assert overview.summary.n_facts == run.plan.n_facts == int(limit)
    sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}\n")
