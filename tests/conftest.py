"""Settings of the whole suite."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# Before torch is imported: threads that Python starts take their number from here, not from what
# the fixture below sets for its own thread, and then round as another number of threads does.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


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
