"""Tasks done by worker processes on one machine, such as the chunks of a run."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection as pipes
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.facts.given import Facts
from dkn_engine.models.load import load_tokenizer
from dkn_engine.run.pipeline import Run, done_before, on_disk, prepare
from dkn_engine.run.progress import watched
from dkn_engine.run.workers.job import Job, ModelSpec
from dkn_engine.run.workers.pool import Pool, Worker, failure
from dkn_engine.store import RunPath
from dkn_engine.store.plan import WHOLE, Shard
from dkn_engine.types import FactResult, Progress

_PATIENCE = 5.0  # seconds for a worker to end by itself


def iter_dkns_in_workers(
    model: ModelSpec,
    facts: Facts,
    config: Config | None = None,
    out: RunPath | None = None,
    *,
    workers: int,
    shard: Shard = WHOLE,
    progress: Progress | bool | None = None,
) -> Iterator[FactResult]:
    """As :func:`dkn_engine.iter_dkns`, with chunks computed by several processes.

    Each process loads the model for itself. Results are bit-equal to those of one process with as
    many torch threads as a worker has. A script that calls this must guard its entry with
    ``if __name__ == "__main__":``, since processes are spawned.

    Args:
        model: what each worker loads.
        facts, config, out, shard, progress: as in :func:`dkn_engine.iter_dkns`; ``out`` is needed.
        workers: number of processes.

    Raises:
        WorkerError: workers were lost at the same chunk, or while they loaded the model, too
            often.
        UserError, DknError: what :func:`dkn_engine.iter_dkns` raises.
    """
    if out is None:
        raise UserError("out must be a run directory where workers compute; got None")
    run = prepare(facts, config, shard, out)

    def find(progress: Progress | None) -> Iterator[FactResult]:
        return iter_run_in_workers(model, run, out, workers=workers, progress=progress)

    return watched(progress, run.plan.n_own, lambda: done_before(out), find)


def iter_run_in_workers(
    model: ModelSpec, run: Run, out: RunPath, *, workers: int, progress: Progress | None = None
) -> Iterator[FactResult]:
    """As :func:`iter_dkns_in_workers`, with facts that were read already."""
    if workers < 1:
        raise UserError(f"workers must be at least 1; got {workers}")
    tokenizer = load_tokenizer(model.name)
    with WorkerPool(Job(model, run.config, run.sample), workers) as pool:
        yield from on_disk(run, out, pool.identity(), tokenizer, pool.compute, progress)


class _Process(Worker):
    def __init__(self, number: int, process: BaseProcess, pipe: Connection) -> None:
        super().__init__(number)
        self.process, self.pipe = process, pipe


class WorkerPool(Pool[_Process]):
    """``n`` processes of this machine; each runs ``life`` with its pipe, the job and its number.

    Attributes:
        context: of multiprocessing, by which processes are started. A fork of this process would
            hold locks of its threads, and could not use a GPU that it has used.
    """

    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")

    def __init__(
        self, job: Job, n: int, life: Callable[[Connection, Job, int], None] | None = None
    ) -> None:
        super().__init__(n)
        self._job, self._life = job, life or serve

    def _start(self, number: int) -> _Process:
        mine, other = self.context.Pipe()
        process = self.context.Process(
            target=self._life, args=(other, self._job, number), daemon=True, name=f"worker {number}"
        )
        with _without_interrupts():
            process.start()
        other.close()
        return _Process(number, process, mine)

    def _send(self, worker: _Process, task: Any) -> None:
        # A worker that is gone is noticed when its end of the pipe is read.
        with contextlib.suppress(OSError):
            worker.pipe.send(task)

    def _messages(self) -> Iterator[tuple[_Process, Any]]:
        heard = pipes.wait([worker.pipe for worker in self._workers])
        for worker in [w for w in self._workers if w.pipe in heard]:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                message = None
            yield worker, message

    def _clean_up(self, worker: _Process) -> str:
        worker.process.join()
        worker.pipe.close()
        code = worker.process.exitcode or 0
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _end(self, workers: list[_Process]) -> None:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C; it is this process that ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def serve(pipe: Connection, job: Job, number: int) -> None:
    """The life of a worker: until it is ended, or the process that began it is gone."""
    try:
        worker = job.start(number)
        pipe.send(("loaded", worker.identity))
        while True:
            task = pipe.recv()
            made = worker.do(task, lambda done, total: pipe.send(("progress", (done, total))))
            pipe.send(("done", made))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        pipe.send(failure(error, traceback.format_exc()))
