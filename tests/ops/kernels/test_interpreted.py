"""The kernels of this folder in Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.kernels.cases import INTERPRETED

FOLDER = Path(__file__).parent


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_every_kernel_interpreted() -> None:
    pytest.importorskip("triton", reason="triton has no wheel for this system")
    # Those that run compiled on a GPU, and no others; none of them may be skipped.
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(FOLDER)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = re.search(r"^(\d+) passed, \d+ deselected in", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout[-2000:]
    assert int(found[1]) > 100
