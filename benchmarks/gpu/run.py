"""The proof on a GPU: tests, kernels, ``find``; ``make gpu``. Within eight minutes on one card.

Each part runs in a process of its own for a limited time and writes benchmarks/results/gpu_PART.csv
row by row, so that one that fails or is slow costs the others nothing and keeps what it has. With
``--dry-run`` everything runs on the CPU at tiny sizes, kernels in Triton's interpreter; its figures
mean nothing and go to ``--out`` alone.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.part import NAMES, ROOT
from benchmarks.gpu.rows import RESULTS, Recorder

# Seconds; together a little less than eight minutes.
LIMITS = {"tests": 130, "kernels": 90, "demo": 90, "llama": 150}


def refusal() -> str | None:
    """Why there is nothing to prove here; None where there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        return f"needs a CUDA device; torch {torch.__version__} sees none"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"needs triton: {error}"
    return None


def limited(command: Sequence[str], limit: float, env: dict[str, str] | None = None) -> str | None:
    """Run a command and all that it starts for so many seconds; None, or how it failed."""
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {limit:g} s"
    return None if code == 0 else f"ended with {code}"


def prove(parts: Sequence[str], folder: Path) -> int:
    """Run parts one after the other; 1 if one failed, and a row in its file says so."""
    failures = 0
    for part in parts:
        print(f"--- {part}, at most {LIMITS[part]} s", flush=True)
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.gpu.part", part, "--out", str(folder)]
        failure = limited(command, LIMITS[part])
        record = Recorder(part, folder, more=True)
        record("the whole part", "", "seconds", [time.perf_counter() - start])
        if failure:
            record("the whole part", "", "failed", [math.nan], failure)
            failures += 1
    return min(failures, 1)


def dry_run(parts: Sequence[str], folder: Path) -> int:
    """The same parts at tiny sizes on the CPU, in one process to be quick."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu.part", *parts, "--out", str(folder)]
    failure = limited([*command, "--dry-run"], sum(LIMITS.values()), env)
    if failure:
        print(f"dry run: {failure}", file=sys.stderr)
    return 1 if failure else 0


def main() -> int:
    """Parse the options; see the module's text."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(NAMES)}; all unless given")
    parser.add_argument("--out", type=Path, help="folder of the tables")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    args = parser.parse_args()
    unknown = sorted(set(args.parts) - set(NAMES))
    if unknown:
        parser.error(f"PART must be one of {', '.join(NAMES)}; got {unknown[0]!r}")
    parts = [name for name in NAMES if name in args.parts or not args.parts]
    if args.dry_run:
        if args.out is None:
            parser.error("--dry-run needs --out, so that no table of a card is written over")
        return dry_run(parts, args.out.resolve())
    reason = refusal()
    if reason:
        print(f"make gpu: {reason}", file=sys.stderr)
        return 2
    return prove(parts, (args.out or RESULTS).resolve())


if __name__ == "__main__":
    raise SystemExit(main())
