"""``dkn-engine bench``: the benchmarks of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dkn_engine.cli.arguments import option, switch
from dkn_engine.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure the engine beside its peers on the demo model, and print the table
    of targets. Takes some minutes; run it alone on the machine.
    """

    cases: tuple[str, ...] = option(
        "cases", "What to measure (default: all).", default=(), nargs="*", metavar="CASE"
    )
    list: bool = switch("--list", "Name the cases.")
    table: bool = switch("--table", "Print the last table and measure nothing.")


def bench(options: BenchOptions) -> int:
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
    switches = [*(["--list"] if options.list else []), *(["--table"] if options.table else [])]
    command = [sys.executable, "-m", "benchmarks.speed.run", *switches, *options.cases]
    return subprocess.run(command, cwd=root, check=False).returncode
