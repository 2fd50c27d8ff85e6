"""``dkn-engine bench``: the benchmarks of a source checkout."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from dkn_engine.errors import UserError


def bench(args: argparse.Namespace) -> int:
    """``dkn-engine bench``: the benchmarks of a source checkout, in a process of their own.

    Raises:
        UserError: the package is installed without its sources.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "speed" / "run.py").is_file():
        raise UserError(
            "the benchmarks travel with the sources, not with the installed package; "
            "run 'make bench' in a checkout"
        )
    options = [f"--{name}" for name in ("list", "table") if getattr(args, name)]
    command = [sys.executable, "-m", "benchmarks.speed.run", *options, *args.cases]
    return subprocess.run(command, cwd=root, check=False).returncode
