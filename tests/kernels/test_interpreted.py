"""The kernels of this folder in Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.conftest import INTERPRETED

FOLDER = Path(__file__).parent


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_every_kernel_interpreted() -> None:
    pytest.importorskip("triton", reason="triton has no wheel for this system")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(FOLDER)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
    # What is skipped there needs a process that does not interpret: this one runs it.
    allowed = {"test_interpreted.py", "test_compile.py", "test_refusals.py"}
    skipped = set(re.findall(r"SKIPPED \[\d+\] tests/kernels/(\w+\.py)", done.stdout))
    assert skipped <= allowed, done.stdout[-2000:]
