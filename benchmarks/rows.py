"""Benchmark rows: timing, where they were measured, and CSV files."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from dkn_engine.files.csv import csv_text

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One measurement; times in seconds, ``q20`` and ``q80`` their quantiles."""

    case: str
    provider: str
    metric: str
    median: float
    q20: float
    q80: float
    repeats: int
    threads: int
    load: float
    machine: str
    versions: str
    commit: str


def row(case: str, provider: str, metric: str, values: Sequence[float]) -> Row:
    """A row over repeated measurements of one thing."""
    low, median, high = (float(f"{v:.6g}") for v in np.quantile(values, [0.2, 0.5, 0.8]))
    return Row(
        case,
        provider,
        metric,
        median,
        low,
        high,
        len(values),
        torch.get_num_threads(),
        round(os.getloadavg()[0], 2),
        f"{platform.machine()}, {os.cpu_count()} cores",
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        commit(),
    )


def timed(work: Callable[[], object], repeats: int, *, warm: bool = True) -> list[float]:
    """Seconds of each of ``repeats`` calls, after one to warm up unless that is too dear."""
    if warm:
        work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def require_equal(
    name: str, found: np.ndarray, expected: np.ndarray, allowed: float = 1e-5
) -> None:
    """End the run, before any time is reported, unless results agree to a share of the largest."""
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not worst <= allowed:
        raise SystemExit(f"{name} differs from the engine by {worst:.1e} of the largest value")


def records_csv(records: Sequence[Mapping[str, object]]) -> str:
    """Records that have the same keys in the same order, of which the columns get their names."""
    return csv_text(list(records[0]), (record.values() for record in records))


def write_csv(path: Path, text: str) -> None:
    """Put the text of a table into a file, on every platform the same bytes."""
    path.write_text(text, encoding="utf-8", newline="")


def write(name: str | Path, rows: Sequence[Row]) -> Path:
    """Write a file of the results folder."""
    path = RESULTS / name
    write_csv(path, csv_text([f.name for f in fields(Row)], (asdict(r).values() for r in rows)))
    return path


def renew(name: str | Path, rows: Sequence[Row]) -> Path:
    """Write a file of the results folder in which ``rows`` replace all of their cases."""
    replaced = {one.case for one in rows}
    kept = [_typed(r) for r in read(name) if r["case"] not in replaced]
    return write(name, [*kept, *rows])


def _typed(record: Mapping[str, str]) -> Row:
    """A record of a file with numbers for the columns that hold numbers."""
    kinds: dict[str, Callable[[str], Any]] = {"repeats": int, "threads": int, "load": float}
    kinds |= dict.fromkeys(("median", "q20", "q80"), float)
    return Row(**{key: kinds.get(key, str)(text) for key, text in record.items()})


def read(name: str | Path) -> list[dict[str, str]]:
    """Rows of a file of the results folder; none if it is not there."""
    path = RESULTS / name
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def commit() -> str:
    """The commit that was measured, with a plus if files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=RESULTS,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
