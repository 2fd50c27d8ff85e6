"""Chunks computed by worker processes on one machine; this process alone writes the results."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection as pipes
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dkn_engine import errors
from dkn_engine.config import Config
from dkn_engine.errors import DknError, UserError, WorkerError
from dkn_engine.models import load_tokenizer
from dkn_engine.pipeline import Facts, Files, Identity, Progress, Run, on_disk, prepare
from dkn_engine.plan import WHOLE, Shard, Task
from dkn_engine.types import FactResult
from dkn_engine.worker import ChunkWorker, Job, ModelSpec

MOST_LOSSES = 3  # of workers at one chunk, or before their model is loaded
_PATIENCE = 5.0  # seconds for a worker to end by itself


def iter_dkns_in_workers(
    model: ModelSpec,
    facts: Facts,
    config: Config | None = None,
    out: str | Path | None = None,
    *,
    workers: int,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
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
    run = prepare(facts, Config() if config is None else config, shard)
    return iter_run_in_workers(model, run, Path(out), workers=workers, progress=progress)


def iter_run_in_workers(
    model: ModelSpec, run: Run, out: Path, *, workers: int, progress: Progress | None = None
) -> Iterator[FactResult]:
    """As :func:`iter_dkns_in_workers`, with facts that were read already."""
    if workers < 1:
        raise UserError(f"workers must be at least 1; got {workers}")
    tokenizer = load_tokenizer(model.name)
    with WorkerPool(Job(model, run.config, run.sample), workers) as pool:
        yield from on_disk(run, out, pool.identity(), tokenizer, pool.compute, progress)


@dataclass(eq=False)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection
    task: Task | None = None
    identity: Identity | None = None


class WorkerPool:
    """Processes that compute chunks; all have ended when the ``with`` block has.

    Args:
        job: what each is to do.
        n: number of processes.
    """

    def __init__(self, job: Job, n: int) -> None:
        self._job, self._n = job, n
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._losses: Counter[int | None] = Counter()
        self._again: deque[Task] = deque()

    def __enter__(self) -> Self:
        try:
            for number in range(self._n):
                self._start(number)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def identity(self) -> Identity:
        """The model's, as soon as one worker has loaded it.

        Raises:
            WorkerError, DknError: see :meth:`compute`.
        """
        while True:
            for worker in self._workers:
                if worker.identity is not None:
                    return worker.identity
            for worker, message in self._messages():
                self._take(worker, message)

    def compute(self, tasks: Iterator[Task]) -> Iterator[tuple[int, Files]]:
        """Chunks and their files, in the order in which they are ready.

        Args:
            tasks: taken one by one as workers become free.

        Raises:
            WorkerError: too many workers were lost at one chunk, or while loading the model.
            DknError: what a worker raised.
            RuntimeError: a worker met an error of the program; with its traceback.
        """
        self._feed(tasks)
        while any(worker.task is not None for worker in self._workers):
            for worker, message in self._messages():
                done = self._take(worker, message)
                # First the next chunk, so that the worker computes while this one is written.
                self._feed(tasks)
                if done is not None:
                    yield done

    def _feed(self, tasks: Iterator[Task]) -> None:
        for worker in self._workers:
            if worker.task is None:
                worker.task = self._again.popleft() if self._again else next(tasks, None)
                if worker.task is None:
                    return
                # A worker that is gone is noticed when its end of the pipe is read.
                with contextlib.suppress(OSError):
                    worker.pipe.send(worker.task)

    def _messages(self) -> Iterator[tuple[_Worker, Any]]:
        """What workers have to say; None from those that are gone."""
        heard = pipes.wait([worker.pipe for worker in self._workers])
        for worker in [w for w in self._workers if w.pipe in heard]:
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                message = None
            yield worker, message

    def _take(self, worker: _Worker, message: Any) -> tuple[int, Files] | None:
        if message is None:
            self._replace(worker)
            return None
        kind, content = message
        if kind == "loaded":
            worker.identity = content
            self._losses[None] = 0
            others = {w.identity for w in self._workers} - {None, content}
            if others:
                raise WorkerError("workers loaded different models; did the model's files change?")
            return None
        if kind == "failed":
            raise _error(*content)
        task, worker.task = worker.task, None
        assert task is not None
        return task.chunk, content

    def _replace(self, worker: _Worker) -> None:
        """Another worker in the place of one that was lost; its chunk is done again."""
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        task = worker.task
        key = task.chunk if worker.identity is not None and task is not None else None
        self._losses[key] += 1
        if self._losses[key] >= MOST_LOSSES:
            raise WorkerError(_lost(worker, key))
        if task is not None:
            self._again.append(task)
        self._start(worker.number)

    def _start(self, number: int) -> None:
        mine, other = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(other, self._job, number), daemon=True, name=f"worker {number}"
        )
        with _without_interrupts():
            process.start()
        other.close()
        self._workers.append(_Worker(number, process, mine))

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers.clear()


def _lost(worker: _Worker, chunk: int | None) -> str:
    code = worker.process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = "; if memory ran out, take fewer workers or a smaller attribution.rows_per_batch"
    if chunk is None:
        return f"a worker {how} before its model was loaded, {MOST_LOSSES} times in a row{hint}"
    return f"chunk {chunk} was given up: at it a worker {how}, {MOST_LOSSES} times{hint}"


def _error(kind: str, text: str) -> Exception:
    """A worker's error; an error of the engine as itself, another with its traceback."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, DknError):
        return found(text)
    return RuntimeError(f"in a worker: {text}")


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


def _serve(pipe: Connection, job: Job, number: int) -> None:
    """The life of a worker: until it is ended, or the process that began it is gone."""
    try:
        worker = ChunkWorker(job, number)
        pipe.send(("loaded", worker.identity))
        while True:
            task: Task = pipe.recv()
            pipe.send(("done", worker.files(task)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except DknError as error:
        pipe.send(("failed", (type(error).__name__, str(error))))
    except Exception:
        pipe.send(("failed", ("", traceback.format_exc())))
