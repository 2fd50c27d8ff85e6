"""Processes that begin with everything imported: forks of one that has imported it once.

A fresh process computes 5 s until torch and transformers are there; a fork is there at once, and
is as fresh otherwise: it has what its modules have at their import, and nothing of the process of
the tests. Where the start itself is what is tested, a test begins a process of its own.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]


@functools.cache
def forks() -> ForkServerContext:
    """A way to start processes, in the place of ``multiprocessing.get_context("spawn")``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.imported"])
    # What is imported before a process is asked for is looked for here.
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        forkserver.ensure_running()
    atexit.register(forkserver._forkserver._stop)  # type: ignore[attr-defined]
    return context


def start(
    function: Callable[..., object], *arguments: Any, stdout: Path, stderr: Path, **options: Any
) -> ForkServerProcess:
    """Begin ``function(*arguments)`` in a process of its own, which says what it says into files.

    Args:
        function: of a module that is imported quickly.
        stdout, stderr: the files.
        cwd: the process's folder, the root of the sources if it is not given.
        env: its environment, that of this process if it is not given.
    """
    where = options.get("cwd", ROOT), options.get("env", dict(os.environ))
    process = forks().Process(target=_live, args=(function, arguments, stdout, stderr, *where))
    process.start()
    return process


def run(
    function: Callable[..., object], *arguments: Any, timeout: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """What :func:`start` began, when it has ended; as from ``subprocess.run``."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(function, *arguments, stdout=out, stderr=err, **options)
        process.join(timeout)
        late = process.is_alive()
        process.kill()
        process.join()
        said = [path.read_text(encoding="utf-8") for path in (out, err)]
    assert not late, f"still at work after {timeout} s; it said {said}"
    assert process.exitcode is not None
    return subprocess.CompletedProcess([*map(str, arguments)], process.exitcode, *said)


def program(*arguments: str) -> None:
    """The life of ``python -m dkn_engine ARGUMENTS``, for :func:`start` and :func:`run`."""
    sys.argv[1:] = arguments
    runpy.run_module("dkn_engine", run_name="__main__", alter_sys=True)


def code(text: str, *arguments: str) -> None:
    """The life of ``python -c TEXT ARGUMENTS``, for :func:`start` and :func:`run`."""
    sys.argv = ["-c", *arguments]
    exec(text, {"__name__": "__main__"})


def _live(
    function: Callable[..., object],
    arguments: tuple[Any, ...],
    stdout: Path,
    stderr: Path,
    cwd: Path,
    env: dict[str, str],
) -> None:
    os.setsid()  # Its own group, as that of a program begun at a terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    function(*arguments)
