"""Chunks computed by actors of a Ray cluster; this process alone writes the results."""

from __future__ import annotations

import contextlib
import importlib
import logging
import traceback
from collections.abc import Iterator
from typing import Any

from dkn_engine.config import Config
from dkn_engine.errors import BackendError, UserError
from dkn_engine.facts.given import Facts
from dkn_engine.models.load import load_tokenizer
from dkn_engine.run.pipeline import Run, done_before, on_disk, prepare
from dkn_engine.run.progress import watched
from dkn_engine.run.tasks import Task
from dkn_engine.run.workers.job import Job, ModelSpec
from dkn_engine.run.workers.pool import Pool, Worker, failure
from dkn_engine.store import RunPath
from dkn_engine.store.plan import WHOLE, Shard
from dkn_engine.types import FactResult, Progress

LOCAL = "local"


def iter_dkns_on_ray(
    model: ModelSpec,
    facts: Facts,
    config: Config | None = None,
    out: RunPath | None = None,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    shard: Shard = WHOLE,
    progress: Progress | bool | None = None,
) -> Iterator[FactResult]:
    """As :func:`dkn_engine.iter_dkns`, with chunks computed by actors of a Ray cluster.

    Each actor loads the model for itself, by a name that must mean the same on every machine.

    Args:
        model: what each actor loads.
        facts, config, out, shard, progress: as in :func:`dkn_engine.iter_dkns`; ``out`` is needed,
            and only this process needs to see it.
        address: of the cluster; ``local`` begins one on this machine and ends it.
        workers: number of actors; None for one a GPU of the cluster, or if it has none, one for
            each ``model.threads`` CPUs.

    Raises:
        BackendError: Ray is not installed.
        WorkerError, UserError, DknError: see :func:`dkn_engine.iter_dkns_in_workers`.
    """
    if out is None:
        raise UserError("out must be a run directory where workers compute; got None")
    run = prepare(facts, config, shard, out)
    where: Any = {"address": address, "workers": workers}

    def find(progress: Progress | None) -> Iterator[FactResult]:
        return iter_run_on_ray(model, run, out, progress=progress, **where)

    return watched(progress, run.plan.n_own, lambda: done_before(out), find)


def iter_run_on_ray(
    model: ModelSpec,
    run: Run,
    out: RunPath,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Iterator[FactResult]:
    """As :func:`iter_dkns_on_ray`, with facts that were read already."""
    tokenizer = load_tokenizer(model.name)
    with _cluster(address), RayPool(Job(model, run.config, run.sample), workers) as pool:
        yield from on_disk(run, out, pool.identity(), tokenizer, pool.compute, progress)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[None]:
    """A connection to a cluster; one that was there already is used and left."""
    try:
        ray = _ray()
    except ImportError as error:
        raise BackendError(
            f"a run on Ray needs the package ray: pip install ray ({error})"
        ) from error
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == LOCAL else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"--ray: no cluster at {address!r}: {first}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    return importlib.import_module("ray")


class _Actor:
    """A worker behind Ray's calls; each answers with a message of the pool."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def load(self) -> Any:
        try:
            self._worker = self._job.start()
        except Exception as error:
            return failure(error, traceback.format_exc())
        return "loaded", self._worker.identity

    def do(self, task: Task) -> Any:
        try:
            return "done", self._worker.do(task, lambda done, total: None)
        except Exception as error:
            return failure(error, traceback.format_exc())


class _Remote(Worker):
    def __init__(self, number: int, actor: Any) -> None:
        super().__init__(number)
        self.actor, self.loss = actor, ""
        self.pending = [actor.load.remote()]


class RayPool(Pool[_Remote]):
    """``n`` actors of the cluster that this process has joined; None for as many as have room."""

    def __init__(self, job: Job, n: int | None = None) -> None:
        ray = _ray()
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        on_gpu = gpus > 0 and job.model.device != "cpu"
        self._options = {"num_cpus": job.model.threads, "num_gpus": int(on_gpu)}
        super().__init__(n or max(1, gpus if on_gpu else cpus // job.model.threads))
        self._job, self._class = ray.put(job), ray.remote(_Actor)

    def _start(self, number: int) -> _Remote:
        return _Remote(number, self._class.options(**self._options).remote(self._job))

    def _send(self, worker: _Remote, task: Task) -> None:
        worker.pending.append(worker.actor.do.remote(task))

    def _messages(self) -> Iterator[tuple[_Remote, Any]]:
        ray = _ray()
        by_call = {w.pending[0]: w for w in self._workers if w.pending}
        ready, _ = ray.wait(list(by_call), num_returns=1)
        for call in ready:
            worker = by_call[call]
            worker.pending.remove(call)
            try:
                message = ray.get(call)
            except ray.exceptions.RayError as error:
                worker.loss = type(error).__name__
                message = None
            yield worker, message

    def _clean_up(self, worker: _Remote) -> str:
        self._end([worker])
        return f"was lost ({worker.loss})"

    def _end(self, workers: list[_Remote]) -> None:
        ray = _ray()
        for worker in workers:
            ray.kill(worker.actor)
