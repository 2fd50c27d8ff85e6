"""Engines in processes that stay, asked in turns, so that the machine is the same to all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCRIPT = Path(__file__).with_name("engine.py")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Engine:
    """The engine of a tree, loaded with a model and facts in a process of its own.

    Args:
        tree: the root of its sources.
        work: see ``Work`` in ``benchmarks/find/engine.py``.

    Raises:
        SystemExit: it cannot be loaded, or it is not the tree's.
    """

    def __init__(self, tree: Path, **work: Any) -> None:
        self.tree = tree
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT)],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(tree)},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        engine = Path(self._answer(work)["engine"]).resolve()
        if not engine.is_relative_to(tree.resolve()):
            self.close()
            raise SystemExit(f"the engine of {tree} was wanted; {engine} was loaded")

    def ask(self, task: str) -> dict[str, Any]:
        """The answer to ``time``, ``count``, ``stages`` or ``peak``.

        Raises:
            SystemExit: the process ended instead.
        """
        return self._answer(task)

    def _answer(self, question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise SystemExit(f"the engine of {self.tree} ended with {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, which the end of its input does."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def alike(these: list[dict[str, Any]], others: list[dict[str, Any]]) -> tuple[int, float]:
    """Facts of which two engines found another DKN or status, and the largest apart of drops.

    Drops are compared where both found the same neurons, components and DKN.
    """
    different, apart = 0, 0.0
    for one, other in zip(these, others, strict=True):
        keys = ("status", "neurons", "components", "dkn")
        if any(one[key] != other[key] for key in keys):
            different += one["status"] != other["status"] or one["dkn"] != other["dkn"]
            continue
        pairs = zip(one["drops"], other["drops"], strict=True)
        apart = max([apart, *(abs(a - b) for a, b in pairs if math.isfinite(a - b))])
    return different, apart
