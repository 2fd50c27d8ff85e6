"""Results on a second device, and of models split over two, are those of the CPU.

The devices are none: ``tests/support/second_device``. They are compiled once (8 s), and are for a
whole process, so that all checks run in one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.second_device import checks, load


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str | None]:
    """For each check the end of its traceback, or None."""
    if load.compiler() is None:
        pytest.skip("there is no C++ compiler to make the devices with")
    done = subprocess.run(
        [sys.executable, "-m", checks.__name__],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


@pytest.mark.parametrize("name", checks.checks())
def test_it_is_the_same_there(outcomes: dict[str, str | None], name: str) -> None:
    """And what would fail on two cards fails there (``mixing``)."""
    problem = outcomes[name]
    assert problem is None, problem
