"""Runs by several processes: bit-equal to one, lost workers replaced, errors and Ctrl-C."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import runpy
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.errors import WorkerError
from dkn_engine.facts import write_facts
from dkn_engine.run.tasks import Task
from dkn_engine.run.workers import processes as parallel
from dkn_engine.run.workers.job import Job, ModelSpec, device_of
from dkn_engine.run.workers.pool import MOST_LOSSES
from dkn_engine.run.workers.processes import WorkerPool, iter_dkns_in_workers
from tests.run.test_pipeline import CONFIG, assert_equal, parquet
from tests.support import forked, lives
from tests.support.saved import find_alone, many_facts, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def facts(folder: Path) -> list[dkn.Fact]:
    model, _ = dkn.load_model(folder, device="cpu")
    return [*many_facts(model, 40), dkn.Fact("empty", "w5", " ")]


@pytest.fixture(scope="module")
def whole(folder: Path, facts: list[dkn.Fact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one fresh process with one thread, as each worker is."""
    out = tmp_path_factory.mktemp("run") / "whole"
    done = forked.run(find_alone, folder, facts, CONFIG, out)
    assert done.returncode == 0, done.stderr
    assert {r.status for r in dkn.read_results(out)} == {"ok", "not_known", "skipped"}
    return out


def children() -> list[Any]:
    return multiprocessing.active_children()


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_give_the_bits_of_one_process_also_if_one_is_killed(
    folder: Path, facts: list[dkn.Fact], whole: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    threads = torch.get_num_threads()

    def progress(done: int, of: int) -> None:
        if not seen:
            os.kill(children()[0].pid, signal.SIGKILL)
        seen.append((done, of))

    spec = ModelSpec(folder, device="cpu")
    found = list(iter_dkns_in_workers(spec, facts, CONFIG, tmp_path, workers=2, progress=progress))
    assert_equal(found, dkn.read_results(whole))
    assert [r.fact_id for r in found] == [f.id for f in facts]
    assert parquet(tmp_path) == parquet(whole)
    assert seen[-1] == (len(facts), len(facts))
    assert sorted(seen) == seen
    assert torch.get_num_threads() == threads
    assert not children()


@pytest.mark.usefixtures("forked_workers")
def test_mistakes_are_the_users(folder: Path, facts: list[dkn.Fact], tmp_path: Path) -> None:
    def start(model: Any, **more: Any) -> None:
        options: dict[str, Any] = {"out": tmp_path / "run", "workers": 1, **more}
        list(iter_dkns_in_workers(ModelSpec(model, device="moon"), facts, CONFIG, **options))

    with pytest.raises(dkn.UserError, match="workers must be at least 1; got 0"):
        start(folder, workers=0)
    with pytest.raises(dkn.UserError, match="there is no such folder"):
        start(tmp_path / "nothing")
    with pytest.raises(dkn.UserError, match="out must be a run directory"):
        start(folder, out=None)
    with pytest.raises(dkn.UserError, match=r"device must be 'auto' or .*'moon'"):
        start(folder)  # What the worker says, in its words.
    assert not children()
    assert list(tmp_path.iterdir()) == []


# --- the pool, with workers that have no model ---


@contextlib.contextmanager
def pool(life: Any, context: Any = None) -> Iterator[WorkerPool]:
    """Two workers; forks, if they are not to be started in another way."""
    job: Any = None
    some = WorkerPool(job, 2, life)
    some.context = context or forked.forks()
    with some as found:
        yield found
    assert not children()


def tasks(n: int) -> Iterator[Task]:
    return iter([Task(i, (i,), ()) for i in range(n)])


@pytest.mark.parametrize(
    ("life", "context"),
    [(lives.works, WorkerPool.context), (lives.works, None), (lives.dies_now_and_then, None)],
)
def test_every_chunk_is_computed_once(life: Any, context: Any) -> None:
    with pool(life, context) as some:
        identity: object = some.identity()
        assert identity == "model"
        found = sorted(some.compute(tasks(12)))
    assert found == [(i, {"facts": b"%d" % i}) for i in range(12)]


def test_tasks_are_taken_as_workers_become_free() -> None:
    taken: list[int] = []

    def counted() -> Iterator[Task]:
        for task in tasks(50):
            taken.append(task.chunk)
            yield task

    with pool(lives.works) as some:
        for i, _ in enumerate(some.compute(counted())):
            assert len(taken) <= i + 1 + 2


def test_how_far_each_task_is_is_told() -> None:
    heard: list[tuple[Task, int, int]] = []
    some_tasks = list(tasks(5))
    with pool(lives.tells) as some:
        made = dict(some.each(iter(some_tasks), lambda *told: heard.append(told)))
        assert dict(some.each(iter(some_tasks))) == made  # Nobody need listen.
    assert made == {task: f"chunk {task.chunk}" for task in some_tasks}
    for task in some_tasks:
        assert [told[1:] for told in heard if told[0] == task] == [(1, 2), (2, 2)]


def test_no_tasks_are_no_work() -> None:
    with pool(lives.works) as some:
        assert list(some.compute(iter([]))) == []


@pytest.mark.parametrize(
    ("life", "message"),
    [
        (lives.dies_at_chunk_1, rf"chunk 1 was given up.* signal 9, {MOST_LOSSES} times"),
        (lives.dies_at_once, "exit code 3 before its model was loaded, 3 times in a row"),
        (lives.loads_something_else, "workers loaded different models"),
    ],
)
def test_what_cannot_be_computed_is_given_up_with_one_error(life: Any, message: str) -> None:
    with pool(life) as some, pytest.raises(WorkerError, match=message):
        list(some.compute(tasks(6)))


def test_busy_workers_are_ended() -> None:
    start = time.monotonic()
    with pool(lives.is_slow) as some:
        some.identity()
        some.compute(tasks(2)).close()  # type: ignore[attr-defined]
        pids = [child.pid for child in children()]
    assert time.monotonic() - start < 30
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class Pipe:
    """Hears what a worker says, and then is gone."""

    def __init__(self, *heard: Any) -> None:
        self.heard, self.said = list(heard), list[Any]()

    def send(self, message: Any) -> None:
        self.said.append(message)

    def recv(self) -> Any:
        if not self.heard:
            raise EOFError
        return self.heard.pop(0)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (dkn.UnsupportedModelError("not this one"), dkn.UnsupportedModelError, "^not this one$"),
        (dkn.BackendError("no triton"), dkn.BackendError, "^no triton$"),
        (IndexError("a bug"), RuntimeError, r"^in a worker: Traceback[\s\S]*IndexError: a bug"),
        (KeyError("UserError"), RuntimeError, "in a worker"),
    ],
)
def test_a_workers_error_is_raised_as_itself_or_with_its_traceback(
    raised: Exception, expected: type[Exception], message: str
) -> None:
    class Broken(Job):
        def start(self, number: int = 0) -> Any:
            raise raised

    pipe: Any = Pipe()
    parallel.serve(pipe, Broken(ModelSpec("none"), CONFIG, ()), 0)
    ((kind, content),) = pipe.said
    assert kind == "failed"
    with pytest.raises(expected, match=message):
        raise content


def test_workers_share_the_gpus() -> None:
    assert [device_of("auto", i, 2) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of("cuda", 3, 2) == "cuda:1"
    assert device_of("auto", 3, 1) == device_of("auto", 3, 0) == "auto"
    assert device_of("cuda:1", 0, 2) == "cuda:1"
    assert device_of("cpu", 5, 8) == "cpu"


def command(folder: Path, facts: list[dkn.Fact], tmp_path: Path, *more: str) -> list[str]:
    file = tmp_path / "facts.jsonl"
    write_facts(file, [f for f in facts if f.answer])
    return [
        *["find", "--model", str(folder), "--device", "cpu", "--facts", str(file)],
        *["--out", str(tmp_path / "run"), "--set", "facts_per_chunk=2", "--workers", "2", *more],
    ]


def processes_of(group: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_ctrl_c_ends_all_processes_in_one_line(
    folder: Path, facts: list[dkn.Fact], tmp_path: Path
) -> None:
    """The workers are fresh processes, as those of users are."""
    err = tmp_path / "err"
    asked = command(folder, facts, tmp_path, "--quiet")
    process = forked.start(forked.program, *asked, stdout=tmp_path / "out", stderr=err)
    assert process.pid is not None
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/facts-*.parquet")) and time.monotonic() < deadline:
        assert process.is_alive(), err.read_text()
        time.sleep(0.02)
    assert len(processes_of(process.pid)) >= 3
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    said = r"dkn-engine: interrupted; \d+ of 40 facts are on disk; give the same command again .*\n"
    assert re.fullmatch(said, err.read_text()), err.read_text()
    deadline = time.monotonic() + 10  # The tracker of multiprocessing ends a moment later.
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(process.pid) == []


@pytest.mark.usefixtures("forked_workers")
def test_a_script_without_a_guard_is_told_of_it(folder: Path, tmp_path: Path) -> None:
    """Each worker runs the script of its parent first, and so begins workers of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "import dkn_engine as dkn\n"
        "facts = [dkn.Fact('a', 'w5 w9', 'w13')]\n"
        f"model = dkn.ModelSpec({str(folder)!r}, 'cpu', 'float32', 1)\n"
        "list(dkn.iter_dkns_in_workers(model, facts, out='run', workers=1))\n"
    )
    with pytest.raises(WorkerError, match=r"must guard its entry with if __name__") as told:
        runpy.run_path(str(script), run_name="__main__")
    assert "memory" not in str(told.value)
