"""A pool of workers that each hold the model: tasks are handed out, lost workers replaced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

from dkn_engine.errors import DknError, WorkerError
from dkn_engine.models.fingerprint import Identity
from dkn_engine.run.pipeline import Files
from dkn_engine.run.tasks import Task

MOST_LOSSES = 3  # of workers at one task, or before their model is loaded
# A callback for a task that is being done: (task, steps done, steps in all).
OnProgress = Callable[[Any, int, int], None]


class Worker:
    """What a pool knows of a worker.

    Attributes:
        number: of its place in the pool; a worker that replaces it has the same.
        task: what it does now; its words, ``str(task)``, name it.
        identity: of its model, once it is loaded.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.task: Any = None
        self.identity: Identity | None = None


W = TypeVar("W", bound=Worker)


class Pool(ABC, Generic[W]):
    """``n`` workers, which have all ended when the ``with`` block has."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._workers: list[W] = []
        self._losses: Counter[str | None] = Counter()
        self._again: deque[Any] = deque()

    @abstractmethod
    def _start(self, number: int) -> W:
        """A new worker, which begins to load its model."""

    @abstractmethod
    def _send(self, worker: W, task: Any) -> None:
        """Let a worker do a task; if it is gone, its next message says so."""

    @abstractmethod
    def _messages(self) -> Iterator[tuple[W, Any]]:
        """Wait for what workers say.

        ``("loaded", identity)``, ``("progress", (done, total))``, ``("done", what it made)``,
        ``("failed", error)`` as in :func:`failure`; None from a worker that is gone.
        """

    @abstractmethod
    def _clean_up(self, worker: W) -> str:
        """Clear up after a worker that is gone; says how it went."""

    @abstractmethod
    def _end(self, workers: list[W]) -> None:
        """End workers, whatever they do."""

    def __enter__(self) -> Self:
        try:
            for number in range(self._n):
                self._workers.append(self._start(number))
        except BaseException:
            self._end(self._workers)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._workers)
        self._workers.clear()

    def identity(self) -> Identity:
        """The model's, as soon as one worker has loaded it.

        Raises:
            WorkerError, DknError: see :meth:`each`.
        """
        while True:
            for worker in self._workers:
                if worker.identity is not None:
                    return worker.identity
            for worker, message in self._messages():
                self._take(worker, message)

    def compute(self, tasks: Iterator[Task]) -> Iterator[tuple[int, Files]]:
        """Chunks and their files, in the order in which they are ready; see :meth:`each`."""
        return ((task.chunk, files) for task, files in self.each(tasks))

    def each(
        self, tasks: Iterator[Any], on_progress: OnProgress | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Tasks and what was made of them, in the order in which they are done.

        Args:
            tasks: taken one by one as workers become free.
            on_progress: called when a worker says how far it is.

        Raises:
            WorkerError: too many workers were lost at one task, or while loading the model.
            DknError: what a worker raised.
            RuntimeError: a worker met an error of the program; with its traceback.
        """
        self._feed(tasks)
        while any(worker.task is not None for worker in self._workers):
            for worker, message in self._messages():
                done = self._take(worker, message, on_progress)
                # First the next task, so that the worker is busy while this one is stored.
                self._feed(tasks)
                if done is not None:
                    yield done

    def _feed(self, tasks: Iterator[Any]) -> None:
        for worker in self._workers:
            if worker.task is None:
                worker.task = self._again.popleft() if self._again else next(tasks, None)
                if worker.task is None:
                    return
                self._send(worker, worker.task)

    def _take(
        self, worker: W, message: Any, on_progress: OnProgress | None = None
    ) -> tuple[Any, Any] | None:
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
            raise content
        if kind == "progress":
            if on_progress is not None:
                on_progress(worker.task, *content)
            return None
        task, worker.task = worker.task, None
        return task, content

    def _replace(self, worker: W) -> None:
        """Another worker in the place of one that was lost; its task is done again."""
        how = self._clean_up(worker)
        self._workers.remove(worker)
        task = worker.task
        key = str(task) if worker.identity is not None and task is not None else None
        self._losses[key] += 1
        if self._losses[key] >= MOST_LOSSES:
            raise WorkerError(_lost(how, key))
        if task is not None:
            self._again.append(task)
        self._workers.append(self._start(worker.number))


def failure(error: Exception, trace: str) -> tuple[str, Exception]:
    """What a worker says of an error: one of the engine's public classes, or its trace."""
    if not isinstance(error, DknError):
        return "failed", RuntimeError(f"in a worker: {trace}")
    public = next(kind for kind in type(error).__mro__ if kind.__module__ == DknError.__module__)
    return "failed", public(str(error))


def _lost(how: str, task: str | None) -> str:
    hint = "; if memory ran out, take fewer workers or a smaller attribution.rows_per_batch"
    if task is None:
        if "exit code" in how:  # Who runs out of memory is killed instead.
            hint = "; a script must guard its entry with if __name__ == '__main__':, and what it "
            hint += "printed above may say more"
        return f"a worker {how} before its model was loaded, {MOST_LOSSES} times in a row{hint}"
    return f"{task} was given up: at it a worker {how}, {MOST_LOSSES} times{hint}"
