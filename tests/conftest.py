"""Settings of the whole suite."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: threads that Python starts take their number from here, not from what
# the fixture below sets for its own thread, and then round as another number of threads does.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays, so that the collector need not go through it again and again."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_sessionfinish() -> None:
    """Or what extensions count as leaked at the end would be all of it."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """torch gets one thread: on tensors as tiny as the tests' more threads only cost time."""
    torch = sys.modules.get("torch")  # not imported for tests that do without it
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _still_one_thread() -> Iterator[None]:
    """A test that leaves torch another number, by which later ones would round, fails itself."""
    yield
    torch = sys.modules.get("torch")
    assert torch is None or torch.get_num_threads() == 1


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of the engine are forks of a process that has imported everything, not fresh ones.

    What they are sent and say is the same, and so is how they end; that fresh ones work too is
    tested in tests/run/test_workers.py.
    """
    from dkn_engine.run.workers.processes import WorkerPool
    from tests.support.forked import forks

    monkeypatch.setattr(WorkerPool, "context", forks())


# Files that take long, the longest first; make test gives them out in this order.
LONGEST = (
    "docs/test_pages.py",
    "run/test_streaming.py",
    "run/test_faults.py",
    "run/test_pipeline.py",
    "packaging/test_broken_installation.py",
    "analysis/test_suite.py",
    "store/test_fuzz_run_directory.py",
    "packaging/test_distribution.py",
    "run/test_workers.py",
    "cli/test_cli.py",
    "models/test_threads.py",
    "store/test_compaction.py",
    "degeneracy/test_chunks.py",
    "models/test_second_device.py",
    "report/test_page.py",
    "ops/kernels/test_interpreted.py",
    "benchmarks/test_gpu.py",
    "attribution/test_sweep.py",
    "benchmarks/test_templama.py",
    "docs/test_examples.py",
    "run/test_covering_workers.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a worker that is given one at the end is waited for by the others."""
    rank = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    missing = [str(path) for path in rank if not path.exists()]
    if missing:
        message = f"LONGEST of tests/conftest.py must name files; not there: {', '.join(missing)}"
        raise pytest.UsageError(message)
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
