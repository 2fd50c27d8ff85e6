"""Where a cell's work is done: by a model in this process, or by several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dkn_engine.analysis.experiments.complexity.model_sizes import ModelSize, model_size
from dkn_engine.analysis.suite.requests import Refusal, Request, make
from dkn_engine.config import Config
from dkn_engine.models.fingerprint import Identity
from dkn_engine.models.load import load_tokenizer
from dkn_engine.run.pipeline import iter_run, on_disk, prepare
from dkn_engine.run.workers.job import ChunkWorker, Job, ModelSpec
from dkn_engine.run.workers.processes import WorkerPool
from dkn_engine.statistics.table import Table
from dkn_engine.store import read_results
from dkn_engine.types import Fact, FactResult, Progress

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from dkn_engine.run.pipeline import Run

Made = tuple[Request, Table | Refusal]


@dataclass(frozen=True)
class Watcher:
    """Who is told what goes on.

    Attributes:
        say: takes one line.
        progress: makes a context that gives a callable of (done, total).
    """

    say: Callable[[str], None]
    progress: Callable[[int], AbstractContextManager[Progress]]


class Work(Protocol):
    """A model at work on the facts of one cell."""

    @property
    def size(self) -> ModelSize:
        """Of the model."""

    def find(self, out: Path, progress: Progress) -> Iterator[FactResult]:
        """The cell's run; see :func:`dkn_engine.iter_dkns`."""

    def tables(
        self, requests: Sequence[Request], results: Sequence[FactResult], watcher: Watcher
    ) -> Iterator[Made]:
        """Tables in the order in which they are done."""


class Engine(Protocol):
    """Something that has a model."""

    def on(self, facts: Sequence[Fact], config: Config) -> AbstractContextManager[Work]:
        """It at work on a cell, for the length of the ``with`` block."""


@dataclass(frozen=True, eq=False)
class Here:
    """A model in this process.

    Attributes:
        model, tokenizer: see :func:`dkn_engine.find_dkns`.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    @contextlib.contextmanager
    def on(self, facts: Sequence[Fact], config: Config) -> Iterator[Work]:
        """See :class:`Engine`."""
        yield _WorkHere(self, prepare(facts, config), model_size(self.model))


@dataclass(frozen=True, eq=False)
class _WorkHere:
    engine: Here
    run: Run
    size: ModelSize

    def find(self, out: Path, progress: Progress) -> Iterator[FactResult]:
        model, tokenizer = self.engine.model, self.engine.tokenizer
        return iter_run(model, tokenizer, self.run, out, progress=progress)

    def tables(
        self, requests: Sequence[Request], results: Sequence[FactResult], watcher: Watcher
    ) -> Iterator[Made]:
        for request in requests:
            watcher.say(f"  {request} ...")
            with watcher.progress(len(request.facts)) as progress:
                made = make(request, self.engine.model, self.engine.tokenizer, results, progress)
            yield request, made


@dataclass(frozen=True)
class InWorkers:
    """Processes of this machine, each with its model; they share chunks, then analyses.

    Attributes:
        model: what each loads.
        n: number of processes.
    """

    model: ModelSpec
    n: int

    @contextlib.contextmanager
    def on(self, facts: Sequence[Fact], config: Config) -> Iterator[Work]:
        """See :class:`Engine`."""
        run = prepare(facts, config)
        tokenizer = load_tokenizer(self.model.name)
        with WorkerPool(_CellJob(self.model, config, run.sample), self.n) as pool:
            yield _WorkInPool(pool, run, tokenizer)


class _WorkInPool:
    def __init__(self, pool: WorkerPool, run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pool, self._run, self._tokenizer = pool, run, tokenizer
        self._identity = pool.identity()
        assert isinstance(self._identity, _SizedIdentity)
        self.size = self._identity.size

    def find(self, out: Path, progress: Progress) -> Iterator[FactResult]:
        return on_disk(
            self._run, out, self._identity, self._tokenizer, self._pool.compute, progress
        )

    def tables(
        self, requests: Sequence[Request], results: Sequence[FactResult], watcher: Watcher
    ) -> Iterator[Made]:
        """As of :class:`Work`; workers read the results from the run directory."""
        if not requests:
            return
        watcher.say(f"  {', '.join(map(str, requests))} ...")
        # Analyses count different things; each is as long here as the run has facts.
        n, done = self._run.plan.n_facts, dict.fromkeys(map(str, requests), 0)
        with watcher.progress(n * len(requests)) as progress:

            def told(request: Request, now: int, total: int) -> None:
                share = n * now // max(total, 1)
                if share > done[str(request)]:
                    done[str(request)] = share
                    progress(sum(done.values()), n * len(requests))

            for request, made in self._pool.each(iter(requests), told):
                told(request, 1, 1)
                watcher.say(f"  {request}: done")
                yield request, made


@dataclass(frozen=True)
class _SizedIdentity(Identity):
    size: ModelSize = field(kw_only=True)


@dataclass(frozen=True)
class _CellJob(Job):
    def start(self, number: int = 0) -> _CellWorker:
        return _CellWorker(self, number)


class _CellWorker(ChunkWorker):
    """Computes chunks, and makes tables of the run that they are of."""

    def __init__(self, job: Job, number: int = 0) -> None:
        super().__init__(job, number)
        one = self.identity
        size = model_size(self.model)
        self.identity = _SizedIdentity(one.fingerprint, one.name, one.traits, size=size)

    def do(self, task: Any, tell: Progress) -> Any:
        if not isinstance(task, Request):
            return super().do(task, tell)
        results = read_results(task.run)
        return make(task, self.model, self.tokenizer, results, tell)
