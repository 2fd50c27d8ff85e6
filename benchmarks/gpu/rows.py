"""Rows of the proof on a GPU, each written when it is measured; torch is not imported for it."""

from __future__ import annotations

import csv
import math
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
PACKAGES = ("torch", "triton", "transformers", "captum")


@dataclass(frozen=True)
class Row:
    """One measurement; ``note`` says what went wrong, or what is special."""

    part: str
    case: str
    provider: str
    metric: str
    median: float
    least: float
    most: float
    repeats: int
    note: str
    card: str
    driver: str
    versions: str
    commit: str


class Recorder:
    """Writes the rows of a part to its file, which is begun anew.

    Args:
        part: its name.
        folder: where ``gpu_PART.csv`` goes.
        more: go on with the file that is there.
    """

    def __init__(self, part: str, folder: Path, *, more: bool = False) -> None:
        self.part, self.path = part, folder / f"gpu_{part}.csv"
        self._where = machine()
        if not more or not self.path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow([f.name for f in fields(Row)])

    def __call__(
        self, case: str, provider: str, metric: str, values: Sequence[float], note: str = ""
    ) -> None:
        """Add a row over repeated measurements of one thing, and print it."""
        middle, least, most = (
            float(f"{v:.6g}") for v in (statistics.median(values), min(values), max(values))
        )
        n = len(values)
        row = Row(self.part, case, provider, metric, middle, least, most, n, note, *self._where)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(asdict(row).values())
        print(f"{case:36} {provider:12} {metric:28} {row.median:<12.5g} {note}", flush=True)

    @contextmanager
    def surviving(self, case: str, provider: str) -> Iterator[None]:
        """A measurement that fails becomes a row that says why; the part goes on."""
        try:
            yield
        except Exception as error:
            lines = str(error).strip().splitlines()
            note = f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
            self(case, provider, "failed", [math.nan], note)


def machine() -> tuple[str, str, str, str]:
    """Card, driver, versions and commit."""
    card, _, driver = said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return card, driver, versions(), said("git", "describe", "--always", "--dirty=+")[0]


def said(*command: str) -> tuple[str, str, str]:
    """The first line that a program prints, in two parts at its comma."""
    try:
        done = subprocess.run(
            command, cwd=RESULTS, capture_output=True, text=True, check=True, timeout=30
        )
        line = done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown", "", "unknown"
    first, comma, rest = line.partition(", ")
    return first, comma, rest


def versions() -> str:
    """Of the packages that the figures depend on."""
    names = []
    for name in PACKAGES:
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            names.append(f"{name} none")
    return ", ".join(names)


def timed(work: Callable[[], object], repeats: int, device: str) -> list[float]:
    """Seconds of each of some calls, after one to warm up, with a cold cache on a GPU."""
    import time

    import torch

    work()
    times = []
    if device == "cpu":
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return times
    # Writing more than any card's cache also keeps it busy while the host starts the kernel.
    flush = torch.empty(1 << 28, dtype=torch.int8, device=device)
    for _ in range(repeats):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        first.record()
        work()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return times
