"""The work on a cell, done by a model of this process or by several processes that load it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dkn_engine.analysis.experiments.complexity.model_sizes import ModelSize, model_size
from dkn_engine.analysis.suite.requests import Request
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
# Workers begin with what takes longest, or one of them would end long after the others.
LONGEST = ("evolvability", "complexity", "fact_check", "robustness")


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

    def at_work(self, _run: Run) -> AbstractContextManager[Loaded]:
        """Who does the work on a run, for the length of a ``with`` block."""
        return contextlib.nullcontext(self)

    def find(self, run: Run, out: Path, progress: Progress) -> Iterator[FactResult]:
        """Results of the run directory ``out``, created or continued."""
        return iter_run(self.model, self.tokenizer, run, out, progress=progress)

    def size(self) -> ModelSize:
        """The size of the model."""
        return model_size(self.model)

    def tables(
        self, requests: Sequence[Request], results: Sequence[FactResult], watcher: Watcher
    ) -> Iterator[Made]:
        """The tables, or why they were not made, in the order in which they are done."""
        for request in requests:
            watcher.say(f"  {request} ...")
            with watcher.progress(len(request.facts)) as progress:
                made = request(self.model, self.tokenizer, progress, results)
            yield request, made


@dataclass(frozen=True)
class InWorkers:
    """A model that ``n`` processes of this machine load, each for itself."""

    spec: ModelSpec
    n: int

    @contextlib.contextmanager
    def at_work(self, run: Run) -> Iterator[Workers]:
        """See :meth:`Loaded.at_work`."""
        with WorkerPool(Job(self.spec, run.config, run.sample), self.n) as pool:
            yield Workers(self.spec.name, pool)


@dataclass(frozen=True, eq=False)
class Workers:
    """Processes that share the work on a run; methods as those of :class:`Loaded`."""

    name: str | Path
    pool: WorkerPool

    def find(self, run: Run, out: Path, progress: Progress) -> Iterator[FactResult]:
        tokenizer = load_tokenizer(self.name)
        return on_disk(run, out, self.pool.identity(), tokenizer, self.pool.compute, progress)

    def size(self) -> ModelSize:
        ((_, size),) = self.pool.each(iter([_measure]))
        assert isinstance(size, ModelSize)
        return size

    def tables(
        self, requests: Sequence[Request], results: Sequence[FactResult], watcher: Watcher
    ) -> Iterator[Made]:
        """Workers read the results from the run directory."""
        if not requests:
            return
        watcher.say(f"  {', '.join(map(str, requests))} ...")
        # Analyses count different things; each is as long here as the run has facts.
        n_facts, done = len(results), dict.fromkeys(map(str, requests), 0)
        total = n_facts * len(requests)
        with watcher.progress(total) as progress:

            def told(request: Request, now: int, of: int) -> None:
                share = n_facts * now // max(of, 1)
                if share > done[str(request)]:
                    done[str(request)] = share
                    progress(sum(done.values()), total)

            for request, made in self.pool.each(iter(longest_first(requests)), told):
                told(request, 1, 1)
                watcher.say(f"  {request}: done")
                yield request, made


def longest_first(requests: Sequence[Request]) -> list[Request]:
    """Requests in the order of :data:`LONGEST`, behind them the others as they were."""
    place = {name: i for i, name in enumerate(LONGEST)}
    return sorted(requests, key=lambda request: place.get(request.name, len(place)))


def _measure(model: nn.Module, _tokenizer: Any, _tell: Progress) -> ModelSize:
    return model_size(model)
