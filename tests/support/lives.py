"""Lives of workers for tests of the pool; imports nothing heavy, since each process does it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def works(pipe: Any, job: Any, number: int) -> None:
    """Answers each task with its chunk's number."""
    pipe.send(("loaded", "model"))
    while True:
        task = pipe.recv()
        time.sleep(0.01)
        pipe.send(("done", {"facts": b"%d" % task.chunk}))


def tells(pipe: Any, job: Any, number: int) -> None:
    """Says twice how far it is with each task."""
    pipe.send(("loaded", "model"))
    while True:
        task = pipe.recv()
        pipe.send(("progress", (1, 2)))
        pipe.send(("progress", (2, 2)))
        pipe.send(("done", str(task)))


def dies_at_chunk_1(pipe: Any, job: Any, number: int) -> None:
    pipe.send(("loaded", "model"))
    while True:
        task = pipe.recv()
        if task.chunk == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send(("done", {}))


def dies_now_and_then(pipe: Any, job: Any, number: int) -> None:
    """Half a message, then nothing; at another chunk in each process."""
    pipe.send(("loaded", "model"))
    for _ in range(3):
        task = pipe.recv()
        pipe.send(("done", {"facts": b"%d" % task.chunk}))
    pipe.recv()
    os.write(pipe.fileno(), b"\0\0\1\0half")
    os._exit(1)


def dies_at_once(pipe: Any, job: Any, number: int) -> None:
    os._exit(3)


def loads_something_else(pipe: Any, job: Any, number: int) -> None:
    pipe.send(("loaded", f"model {number}"))
    pipe.recv()
    time.sleep(60)


def is_slow(pipe: Any, job: Any, number: int) -> None:
    pipe.send(("loaded", "model"))
    pipe.recv()
    time.sleep(60)
