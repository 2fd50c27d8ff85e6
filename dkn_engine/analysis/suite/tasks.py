"""The work on a cell, done by a model of this process or by several processes that load it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dkn_engine.analysis.experiments.complexity.model_sizes import ModelSize, model_size
from dkn_engine.analysis.suite.requests import Request, make
from dkn_engine.models.load import load_tokenizer
from dkn_engine.run.pipeline import Run, iter_run, on_disk
from dkn_engine.run.workers.job import Job, ModelSpec
from dkn_engine.run.workers.processes import WorkerPool
from dkn_engine.statistics.table import Table
from dkn_engine.types import FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Made = tuple[Request, Table | str]


class Watcher(Protocol):
    """Who is told what goes on, such as a console."""

    def say(self, text: str) -> None:
        """Take one line."""

    def progress(self, total: int) -> AbstractContextManager[Progress]:
        """A callable of (done, total) for the length of a ``with`` block."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in this process; see :func:`dkn_engine.find_dkns`."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class InWorkers:
    """A model that ``n`` processes of this machine load, each for itself."""

    spec: ModelSpec
    n: int


@contextlib.contextmanager
def workers_of(model: Loaded | InWorkers, run: Run) -> Iterator[WorkerPool | None]:
    """The processes that share the work on a run; None for a model of this process."""
    if isinstance(model, Loaded):
        yield None
    else:
        with WorkerPool(Job(model.spec, run.config, run.sample), model.n) as pool:
            yield pool


def find(
    model: Loaded | InWorkers, pool: WorkerPool | None, run: Run, out: Path, progress: Progress
) -> Iterator[FactResult]:
    """Results of the run directory ``out``, created or continued."""
    if isinstance(model, Loaded):
        return iter_run(model.model, model.tokenizer, run, out, progress=progress)
    assert pool is not None
    tokenizer = load_tokenizer(model.spec.name)
    return on_disk(run, out, pool.identity(), tokenizer, pool.compute, progress)


def size_of(model: Loaded | InWorkers, pool: WorkerPool | None) -> ModelSize:
    """The size of the model."""
    if isinstance(model, Loaded):
        return model_size(model.model)
    assert pool is not None
    ((_, size),) = pool.each(iter([_measure]))
    assert isinstance(size, ModelSize)
    return size


def _measure(model: nn.Module, _tokenizer: Any, _tell: Progress) -> ModelSize:
    return model_size(model)


def map_tasks(
    model: Loaded | InWorkers,
    pool: WorkerPool | None,
    requests: Sequence[Request],
    results: Sequence[FactResult],
    watcher: Watcher,
) -> Iterator[Made]:
    """The tables, or why they were not made, in the order in which they are done.

    Args:
        model, pool: see :func:`workers_of`; workers read the results from the run directory.
        requests: what to make.
        results: of the run.
        watcher: is told how far it is.
    """
    if pool is not None:
        yield from _shared(pool, requests, len(results), watcher)
        return
    assert isinstance(model, Loaded)
    for request in requests:
        watcher.say(f"  {request} ...")
        with watcher.progress(len(request.facts)) as progress:
            made = make(request, model.model, model.tokenizer, results, progress)
        yield request, made


def _shared(
    pool: WorkerPool, requests: Sequence[Request], n_facts: int, watcher: Watcher
) -> Iterator[Made]:
    if not requests:
        return
    watcher.say(f"  {', '.join(map(str, requests))} ...")
    # Analyses count different things; each is as long here as the run has facts.
    total, done = n_facts * len(requests), dict.fromkeys(map(str, requests), 0)
    with watcher.progress(total) as progress:

        def told(request: Request, now: int, of: int) -> None:
            share = n_facts * now // max(of, 1)
            if share > done[str(request)]:
                done[str(request)] = share
                progress(sum(done.values()), total)

        for request, made in pool.each(iter(requests), told):
            told(request, 1, 1)
            watcher.say(f"  {request}: done")
            yield request, made
