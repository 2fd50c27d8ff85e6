"""One part of the proof in a process of its own: ``python -m benchmarks.gpu.part NAME ...``."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.rows import Recorder

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("tests", "kernels", "demo", "llama")
# With workers the outcome comes first.
WORDS = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
OUTCOME = re.compile(
    rf"^(?:\[gw\d+\] \[ *\d+%\] (?P<word>{WORDS}) (?P<test>\S+::.+?) *$"
    rf"|(?P<alone>\S+::.+?) (?P<behind>{WORDS})\b)"
)
# A dry run starts the same command; one file's tests show that it is understood.
DRY_TESTS = ("tests/ops/kernels/test_path_activation.py", "-k", "nothing_gives")


def tests(record: Recorder, *, dry_run: bool) -> int:
    """The tests marked ``gpu``, a row each as it ends; pytest's exit code."""
    where = DRY_TESTS if dry_run else ("tests",)
    options = ["-v", "-m", "gpu", "-p", "no:cacheprovider", "--color=no", "--tb=short"]
    # Most of the time goes into compiling kernels, which the host's cores do side by side.
    if not dry_run and find_spec("xdist") is not None:
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *where],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for name, outcome in outcomes(process.stdout):
        record(name, "pytest", "passed", [float(outcome == "PASSED")], outcome)
    return process.wait()


def outcomes(lines: Iterator[str] | Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and outcomes of tests in what ``pytest -v`` prints; everything else is printed on."""
    for line in lines:
        outcome = OUTCOME.match(line)
        if outcome:
            yield outcome["test"] or outcome["alone"], outcome["word"] or outcome["behind"]
        else:
            print(line, end="", flush=True)


def run(name: str, folder: Path, *, dry_run: bool) -> int:
    """Measure one part; 0, or the exit code of its tests."""
    record = Recorder(name, folder)
    if name == "tests":
        return tests(record, dry_run=dry_run)
    # Triton reads TRITON_INTERPRET when these import it.
    from benchmarks.gpu import find, kernels

    parts = {"kernels": kernels.kernels, "demo": find.demo, "llama": find.llama}
    parts[name](record, "cpu" if dry_run else "cuda", tiny=dry_run)
    return 0


def main() -> int:
    """Parse the options; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=NAMES)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    return max(run(name, args.out, dry_run=args.dry_run) for name in args.names)


if __name__ == "__main__":
    raise SystemExit(main())
