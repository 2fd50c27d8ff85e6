"""For a process of its own: kills runs of a tiny model at many points and checks what they left.

One process loads everything and forks a child a run, which saves hundreds of starts. A directory
is killed again and again until a run gets through; then it must be bit-equal to an undisturbed one.
Runs that are killed at a step of a write take their chunks' results from the undisturbed run, since
it is the writing that they test; those that are killed at any time compute everything.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig, Config, FilterConfig
from dkn_engine.facts.scan import scan
from dkn_engine.run.pipeline import iter_run, prepare
from dkn_engine.run.stages import Stages
from dkn_engine.run.tasks import Task
from dkn_engine.store.plan import Plan
from tests.run.test_pipeline import parquet
from tests.support.saved import many_facts
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

torch.set_num_threads(1)
MODEL, TOKENIZER = tiny("llama", torch.float32), words_tokenizer()
# Cheap, since it is the writing that is tested: the model knows one of these.
FACTS = [many_facts(MODEL, 9)[i] for i in (0, 2, 3, 4, 6, 8)]
CONFIG = Config(
    facts_per_chunk=2,
    attribution=AttributionConfig(baseline="zero", quadrature="riemann_left", n_steps=2),
    filter=FilterConfig(min_probability=0.02, n_random=1, n_unrelated=0),
)
PLAN = Plan(len(FACTS), facts_per_chunk=2, chunks_per_window=2)  # The last window has one chunk.
RUN = dataclasses.replace(
    prepare(FACTS, CONFIG), plan=PLAN, scanned=scan(FACTS, window=PLAN.window)
)
FIRST_CHUNK = (1, 2)  # The shortest facts of the first window.
COMPUTE = Stages.of_task


def run(out: Path, progress: Callable[[int, int], None] | None = None) -> list[dkn.FactResult]:
    return list(iter_run(MODEL, TOKENIZER, RUN, out, progress=progress))


def look_up_chunks(out: Path) -> None:
    """Make a run, and take the results of its chunks from it in all runs from here on."""
    known = {}

    def remembered(stages: Stages, task: Task) -> list[dkn.FactResult]:
        results = known[tuple(f.id for f in task.facts)] = COMPUTE(stages, task)
        return results

    def looked_up(_stages: Stages, task: Task) -> list[dkn.FactResult]:
        return known[tuple(f.id for f in task.facts)]

    Stages.of_task = remembered  # type: ignore[assignment,method-assign]
    run(out)
    Stages.of_task = looked_up  # type: ignore[assignment,method-assign]


class HalfWritten:
    """A file whose writes come in halves, with a step in the middle of each."""

    def __init__(self, file: Any, step: Callable[[], None]) -> None:
        self._file, self._step = file, step

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._step()
        self._file.write(data[len(data) // 2 :])


def count_steps(at: int) -> Callable[[], int]:
    """Make every step of a write countable; at the given one this process is killed."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)

    real_open, real_replace, real_sync = Path.open, Path.replace, os.fsync

    def opened(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        file = real_open(self, mode, *args, **more)
        return HalfWritten(file, step) if mode == "wb" else file

    def replaced(self: Path, target: Path) -> Path:
        step()
        return real_replace(self, target)

    def synced(descriptor: int) -> None:
        step()
        real_sync(descriptor)

    Path.open, Path.replace, os.fsync = opened, replaced, synced  # type: ignore[assignment,method-assign]
    return lambda: steps


def in_child(work: Callable[[], object], kill_after: float | None = None) -> bool:
    """Whether a forked child was killed; it may also get through, but not fail."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, -signal.SIGKILL}, f"a run failed with exit code {code}"
    return code != 0


def killed_at_step(out: Path, step: int) -> bool:
    def work() -> None:
        count_steps(step)
        run(out)

    return in_child(work)


def check(out: Path, whole: Path) -> None:
    assert [r.fact_id for r in dkn.read_results(out)] == [f.id for f in FACTS]
    assert parquet(out) == parquet(whole), "results are not bit-equal"
    assert not list(out.glob("*.tmp")), "temporary files are left"
    shutil.rmtree(out)


def kills_at_steps(out: Path, whole: Path, wanted: int, rng: random.Random) -> tuple[int, int]:
    """At each step of a write once, then at any of them; how many kills, and how many steps."""
    # Killing at a step that never comes tells how many there are.
    steps_read, steps_write = os.pipe()

    def count() -> None:
        steps = count_steps(-1)
        run(out)
        os.write(steps_write, b"%d" % steps())

    assert not in_child(count)
    n_steps = int(os.read(steps_read, 20))
    check(out, whole)
    kills, points = 0, list(range(1, n_steps + 1))
    while points or kills < wanted:
        first = points.pop(rng.randrange(len(points))) if points else rng.randint(1, n_steps)
        assert killed_at_step(out, first), f"step {first} of {n_steps} was not reached"
        kills += 1
        while killed_at_step(out, rng.randint(1, n_steps)):
            kills += 1
        check(out, whole)
    return kills, n_steps


def kill_after_a_chunk(out: Path, whole: Path) -> None:
    """Its results can be read, and they are not computed again."""

    def kill(done: int, _of: int) -> None:
        if done:
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: run(out, kill))
    assert [r.fact_id for r in dkn.read_results(out)] == [FACTS[i].id for i in FIRST_CHUNK]

    def go_on() -> None:
        computed: list[int] = []

        def counted(stages: Stages, task: Task) -> list[dkn.FactResult]:
            computed.append(task.chunk)
            return COMPUTE(stages, task)

        Stages.of_task = counted  # type: ignore[assignment,method-assign]
        run(out)
        assert computed == [1, 2], computed

    assert not in_child(go_on)
    check(out, whole)


def kills_at_any_time(out: Path, whole: Path, wanted: int, rng: random.Random) -> int:
    """Also in the middle of computing; how many kills."""
    # A child's own time: its first writes to shared memory make it slower than this process, and
    # kills that come before the first chunk lead nowhere.
    start = time.monotonic()
    assert not in_child(lambda: run(out))
    seconds = time.monotonic() - start
    check(out, whole)
    kills = 0
    while kills < wanted:
        while in_child(lambda: run(out), rng.uniform(0, 1.2 * seconds)):
            kills += 1
        check(out, whole)
    return kills


def main(folder: str, wanted: str) -> None:
    whole, out, rng = Path(folder) / "whole", Path(folder) / "run", random.Random(0)
    look_up_chunks(whole)
    gc.freeze()  # Or each child's first collection would copy all that it shares.
    of_steps, n_steps = kills_at_steps(out, whole, 2 * int(wanted) // 3, rng)
    Stages.of_task = COMPUTE  # type: ignore[method-assign]
    kill_after_a_chunk(out, whole)
    kills = of_steps + kills_at_any_time(out, whole, int(wanted) // 3, rng)
    gc.unfreeze()
    sys.stdout.write(f"{kills} kills, {n_steps} steps\n")
