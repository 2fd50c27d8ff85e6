"""The whole of TempLAMA end to end: throughput, memory, disk, workers, a kill and its resume.

``python -m benchmarks.scale.templama [CASE ...] --facts FILE``, FILE being TempLAMA's training set.
Every case runs ``dkn-engine find`` at the default configuration in a process of its own, as users
do, and replaces its rows in benchmarks/results/templama.csv. The small GPT-2 is trained on first
use (see ``benchmarks.scale.templama_model``). Run it alone: every row has the load beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import dkn_engine as dkn
from benchmarks.rows import Row, renew, row
from benchmarks.scale.stage_clock import BEGINNINGS, PARTS, STAGES, StageClock
from benchmarks.scale.templama_bert import BertTraining, masked_facts
from benchmarks.scale.templama_model import BUILD, Training, dated_facts, trained
from benchmarks.scale.templama_paper import paper
from dkn_engine.config import Config
from dkn_engine.facts import write_facts
from dkn_engine.store import iter_results
from dkn_engine.types import Fact

RESULTS = "templama.csv"
SHARES = (0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Setting:
    """What the cases run on.

    Attributes:
        facts: TempLAMA's training file.
        some: facts of the cases that run the same facts several times.
        demo: facts of the case on the demo model.
        timed: facts whose time is taken apart.
        workers: processes of the cases that have several.
        training: of the small model.
        bert: of the small BERT.
        every: one of so many of TempLAMA's facts, wherever their blank is, is the BERT's.
        masked: facts of the case on it.
        root: where models, facts and runs are kept.
        pause: seconds between two looks at a run that will be killed.
    """

    facts: Path
    some: int = 600
    demo: int = 200
    timed: int = 96
    workers: int = 2
    training: Training = field(default_factory=Training)
    bert: Training = field(default_factory=BertTraining)
    every: int = 4
    masked: int = 300
    root: Path = BUILD
    pause: float = 0.5


@dataclass(frozen=True)
class Measured:
    """One process from start to end.

    Attributes:
        seconds: wall-clock, everything: imports, loading, the summary at the end.
        cpu: seconds of processor time of the process and its workers.
        peaks: the most resident MiB of process and workers together, until each of ``SHARES`` of
            the facts was done; NaN where it began with more.
        exit: its exit code.
    """

    seconds: float
    cpu: float
    peaks: tuple[float, ...]
    exit: int


def find(
    model: str,
    facts: Path,
    out: Path,
    n: int,
    *options: str,
    kill_at: float | None = None,
    pause: float = 0.5,
) -> Measured:
    """Run ``dkn-engine find`` and watch it.

    Args:
        model, facts, out, options: of the command.
        n: number of facts.
        kill_at: kill the process and its workers with SIGKILL at this share of the chunks.
        pause: seconds between two looks at it.

    Raises:
        SystemExit: the run fails.
    """
    command = [sys.executable, "-m", "dkn_engine", "find", "--model", model, "--facts", str(facts)]
    command += ["--out", str(out), "--threads", "1", "--quiet", "--no-report", *options]
    chunks = -(-n // Config().facts_per_chunk)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        samples: list[tuple[float, float]] = []
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            # At its end the run puts its chunks into fewer files.
            now = sum(1 for _ in out.glob("facts-*.parquet")) / chunks
            done = max(now, samples[-1][0] if samples else 0.0)
            samples.append((done, resident(process.pid)))
            if kill_at is not None and done >= kill_at:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(pause)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        said.seek(0)
        if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
            raise SystemExit(f"{' '.join(command)}: {said.read().decode()}")
    # A continued run begins with more than a tenth of its facts.
    peaks = tuple(
        max((m for done, m in samples if done <= share), default=float("nan")) for share in SHARES
    )
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(seconds, cpu, peaks, process.returncode)


def resident(pid: int) -> float:
    """MiB that a process and those it started hold; 0 of those that have ended."""
    total = 0.0
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        total = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(resident(int(child)) for child in (task / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def train(setting: Setting) -> Iterator[Row]:
    """The small model: trained, or taken from the folder in which it is kept."""
    yield from training("training", setting.training.name, small(setting))


def training(case: str, name: str, folder: Path) -> Iterator[Row]:
    """What a training said of itself."""
    said = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    for metric in ("seconds", "cpu_seconds", "epochs", "facts", "vocabulary"):
        yield row(case, name, metric, [said[metric]])
    yield row(case, name, "share_known", [said["known"]])


def bert(setting: Setting) -> Iterator[Row]:
    """A small BERT on some of all facts, wherever their blank is: its training, then a run."""
    every, name = masked_facts(setting.facts, setting.every), setting.bert.name
    folder = trained(setting.bert, every, setting.root)
    yield from training("training, BERT", name, folder)
    facts, out = facts_file(setting, spread(every, setting.masked), "masked"), fresh(setting, name)
    case = f"{facts.n} facts, 1 worker, BERT"
    found = find(str(folder), facts.path, out, facts.n, pause=setting.pause)
    yield from speed(case, name, facts.n, found)
    yield from contents(case, name, out)
    timed = spread(every, setting.timed // 4)
    case = f"{len(timed)} facts, time, BERT"
    for metric, share in time_shares(setting, folder, timed).items():
        yield row(case, name, metric, [share])


def small(setting: Setting) -> Path:
    """Folder of the small model and its facts."""
    facts = dated_facts(setting.facts)
    return trained(setting.training, facts, setting.root)


def whole(setting: Setting) -> Iterator[Row]:
    """All facts through the small model in one process."""
    facts, out = facts_file(setting, dated_facts(setting.facts)), fresh(setting, "whole")
    case, name = "all facts, 1 worker", setting.training.name
    found = find(str(small(setting)), facts.path, out, facts.n)
    yield from speed(case, name, facts.n, found)
    yield from contents(case, name, out)


def workers(setting: Setting) -> Iterator[Row]:
    """All facts by several workers; the tables must be those of one."""
    facts, out = facts_file(setting, dated_facts(setting.facts)), fresh(setting, "workers")
    case, name = f"all facts, {setting.workers} workers", setting.training.name
    found = find(str(small(setting)), facts.path, out, facts.n, "--workers", str(setting.workers))
    yield from speed(case, name, facts.n, found)
    n = require_bit_equal(out, run_folder(setting, "whole"))
    yield row(case, name, "files_bit_equal_to_1_worker", [n])


def resume(setting: Setting) -> Iterator[Row]:
    """Facts by several workers, undisturbed; then killed with SIGKILL at half, and once more."""
    facts, name = some_facts(setting), setting.training.name
    undisturbed, killed = fresh(setting, "undisturbed"), fresh(setting, "killed")
    command, more = (str(small(setting)), facts.path), ("--workers", str(setting.workers))
    straight = find(*command, undisturbed, facts.n, *more)
    first = find(*command, killed, facts.n, *more, kill_at=0.5, pause=setting.pause)
    there = sum(1 for _ in killed.glob("facts-*.parquet"))
    second = find(*command, killed, facts.n, *more)
    case, both = f"{facts.n} facts, killed at half", first.seconds + second.seconds
    yield row(case, name, "files_bit_equal", [require_bit_equal(killed, undisturbed)])
    yield row(case, name, "seconds_undisturbed", [straight.seconds])
    yield row(case, name, "seconds_until_killed", [first.seconds])
    yield row(case, name, "chunks_there_when_killed", [there])
    yield row(case, name, "seconds_resumed", [second.seconds])
    yield row(case, name, "seconds_more", [both - straight.seconds])


def require_bit_equal(found: Path, expected: Path) -> int:
    """The number of tables of two run directories, which end the run if they differ."""
    names = sorted(f.name for f in expected.glob("*.parquet"))
    if not names or names != sorted(f.name for f in found.glob("*.parquet")):
        raise SystemExit(f"{found} has other tables than {expected}; it must be measured first")
    for name in names:
        if (found / name).read_bytes() != (expected / name).read_bytes():
            raise SystemExit(f"{name} differs between {found} and {expected}")
    return len(names)


def speed(case: str, provider: str, n: int, found: Measured) -> Iterator[Row]:
    """Rows about a process."""
    yield row(case, provider, "seconds", [found.seconds])
    yield row(case, provider, "facts_per_second", [n / found.seconds])
    yield row(case, provider, "cpu_milliseconds_per_fact", [1e3 * found.cpu / n])
    for share, peak in zip(SHARES, found.peaks, strict=True):
        yield row(case, provider, f"peak_mib_until_{share:.0%}", [peak])


def contents(case: str, provider: str, out: Path) -> Iterator[Row]:
    """Rows about what a run directory holds."""
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    yield row(case, provider, "output_mib", [size / 2**20])
    results = list(iter_results(out))
    yield row(case, provider, "facts", [len(results)])
    for status, count in sorted(Counter(r.status for r in results).items()):
        yield row(case, provider, status, [count])
    known = [r for r in results if r.status == "ok"]
    degenerate = sum(r.is_degenerate for r in known)
    yield row(case, provider, "degenerate", [degenerate])
    share = degenerate / len(known) if known else float("nan")
    yield row(case, provider, "share_degenerate_of_known", [share])
    for metric, values in (
        ("neurons_per_known_fact", [len(r.neurons) for r in known]),
        ("components_per_known_fact", [len(r.components) for r in known]),
        ("points_per_layer", [float(r.n_points.mean()) for r in known]),
    ):
        yield row(case, provider, metric, values or [float("nan")])


def pairs(setting: Setting) -> Iterator[Row]:
    """The same facts in one process and in several, in turn, twice."""
    facts, name = some_facts(setting), setting.training.name
    found: dict[int, list[Measured]] = {1: [], setting.workers: []}
    for _ in range(2):
        for number, runs in found.items():
            out = fresh(setting, "pairs")
            options = ("--workers", str(number))
            runs.append(find(str(small(setting)), facts.path, out, facts.n, *options))
    for number, runs in found.items():
        case = f"{facts.n} facts, {number} worker{'s' * (number > 1)}"
        yield row(case, name, "facts_per_second", [facts.n / m.seconds for m in runs])
        yield row(case, name, "cpu_milliseconds_per_fact", [1e3 * m.cpu / facts.n for m in runs])
    ratios = [a.seconds / b.seconds for a, b in zip(*found.values(), strict=True)]
    yield row(case, name, "times_as_fast_as_1_worker", ratios)


def demo(setting: Setting) -> Iterator[Row]:
    """Packaged facts, again and again under other ids, through the demo model.

    Of TempLAMA's first 200 facts it knows none, and facts that are not known cost next to nothing.
    """
    packaged = dkn.load_facts("demo")
    copies = (
        dataclasses.replace(fact, id=f"{fact.id}-{i}")
        for i in itertools.count()
        for fact in packaged
    )
    facts = facts_file(setting, list(itertools.islice(copies, setting.demo)))
    out, case, name = fresh(setting, "demo"), f"{facts.n} facts, 1 worker", "SmolLM2-135M"
    found = find("demo", facts.path, out, facts.n)
    yield from speed(case, name, facts.n, found)
    yield from contents(case, name, out)


def stages(setting: Setting) -> Iterator[Row]:
    """Where the processor's time goes, in this process."""
    facts = spread(dated_facts(setting.facts), setting.timed)
    case = f"{len(facts)} facts, time"
    for metric, share in time_shares(setting, small(setting), facts).items():
        yield row(case, setting.training.name, metric, [share])


def time_shares(setting: Setting, folder: Path, facts: Sequence[Fact]) -> dict[str, float]:
    """Of the processor's time, by what the stages and then their parts are called."""
    model, tokenizer = dkn.load_model(folder, device="cpu")
    # What is imported when it is first used must not count.
    dkn.find_dkns(model, tokenizer, facts[:8], out=fresh(setting, "stages"))
    found: dict[str, float] = {}
    for names, beginnings in ((STAGES, BEGINNINGS), (tuple(PARTS), PARTS)):
        out, clock = fresh(setting, "stages"), StageClock()
        with clock.told(beginnings):
            dkn.find_dkns(model, tokenizer, facts, out=out)
        clock.switch(STAGES[0])
        every = sum(clock.seconds.values())
        found |= {f"share_{name}": clock.seconds[name] / every for name in names}
    return found


@dataclass(frozen=True)
class FactsOnDisk:
    """A file of facts and their number."""

    path: Path
    n: int


def facts_file(setting: Setting, facts: Sequence[Fact], kind: str = "dated") -> FactsOnDisk:
    """Facts written to a file beside the models."""
    setting.root.mkdir(parents=True, exist_ok=True)
    path = setting.root / f"{len(facts)}-{kind}-facts.jsonl"
    write_facts(path, facts)
    return FactsOnDisk(path, len(facts))


def some_facts(setting: Setting) -> FactsOnDisk:
    """Dated facts spread over all of them."""
    return facts_file(setting, spread(dated_facts(setting.facts), setting.some))


def spread(every: Sequence[Fact], n: int) -> Sequence[Fact]:
    return every[:: max(1, len(every) // n)][:n]


def run_folder(setting: Setting, name: str) -> Path:
    return setting.root / "runs" / name


def fresh(setting: Setting, name: str) -> Path:
    """A run directory that is not there yet; it is kept after the case."""
    folder = run_folder(setting, name)
    shutil.rmtree(folder, ignore_errors=True)
    return folder


CASES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "train": train,
    "whole": whole,
    "workers": workers,
    "resume": resume,
    "pairs": pairs,
    "stages": stages,
    "demo": demo,
    "bert": bert,
    "paper": lambda _: paper(),
}


def measure(setting: Setting, names: Sequence[str], table: str | Path = RESULTS) -> None:
    """Run cases one after the other; each replaces its own rows of the table when it is done."""
    for name in names:
        rows = []
        for one in CASES[name](setting):
            print(f"{one.case:28} {one.provider:12} {one.metric:26} {one.median:.4g}", flush=True)
            rows.append(one)
        print(renew(table, rows))


def main() -> None:
    """Parse the options; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--facts", required=True, type=Path, help="TempLAMA's training file")
    parser.add_argument("--some", type=int, default=Setting.some, help="facts of repeated runs")
    parser.add_argument("--workers", type=int, default=Setting.workers)
    args = parser.parse_args()
    unknown = sorted(set(args.cases) - set(CASES))
    if unknown:
        parser.error(f"CASE must be one of {', '.join(CASES)}; got {unknown[0]!r}")
    torch.set_num_threads(1)
    setting = Setting(args.facts, some=args.some, workers=args.workers)
    measure(setting, args.cases or list(CASES))


if __name__ == "__main__":
    main()
