"""The whole of ``find`` beside the engine of before, the published procedure and a lower bound.

``python -m benchmarks.find.run [CASE ...]``: see ``--help``. Each case replaces its rows in
benchmarks/results/find.csv. Processor time with one thread; engines are asked in turns, so that a
busy machine is the same to all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dkn_engine as dkn
from benchmarks.find.calculation import Counted, Plan, calculated, milliseconds
from benchmarks.find.engine import STAGES
from benchmarks.find.other_commit import ROOT, tree_of
from benchmarks.find.published import published
from benchmarks.find.turns import Engine, alike
from benchmarks.kernels.estimate import MODELS
from benchmarks.rows import Row, read, renew, row
from benchmarks.scale.templama import Setting as TempLama
from benchmarks.scale.templama import find as watched_find
from benchmarks.scale.templama import fresh, some_facts
from benchmarks.scale.templama_model import BUILD, Training, dated_facts, trained
from benchmarks.speed import peers
from dkn_engine.config import FactsConfig
from dkn_engine.facts import write_facts
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import mask_token_id

FILE = "find.csv"
BEFORE = "3069e91"  # the commit before facts of a chunk shared the filter's climbs
OURS = "dkn_engine"
# What it does that the engine of before did not is left out.
SAME_WORK = "dkn_engine, no regrouping"
PARTS = ("arithmetic", "memory", "launches")


@dataclass(frozen=True)
class Setting:
    """What the cases run on.

    Attributes:
        templama: its training file, for the small GPT-2; None leaves that model out.
        before: the commit that stands beside this tree.
        turns: of each engine.
        demo, small: facts of the two models.
        root: where the small model is kept.
    """

    templama: Path | None = None
    before: str = BEFORE
    turns: int = 3
    demo: int = 16
    small: int = 96
    root: Path = BUILD


@dataclass(frozen=True)
class Asked:
    """A model with its facts, by the names that an engine's process takes."""

    name: str
    model: str
    facts: str
    n: int

    def work(self, **config: Any) -> dict[str, Any]:
        return {"model": self.model, "facts": self.facts, "n": self.n, "config": config}


def demo(setting: Setting) -> Iterator[Row]:
    """The demo model: this tree beside the other commit, and the published procedure."""
    yield from beside(setting, Asked("demo model", "demo", "demo", setting.demo))


def small(setting: Setting) -> Iterator[Row]:
    """The same of the small GPT-2 that was trained on TempLAMA."""
    yield from beside(setting, small_gpt2(setting))


def small_gpt2(setting: Setting) -> Asked:
    """The small GPT-2, trained on first use, with facts spread over all of TempLAMA.

    Raises:
        SystemExit: TempLAMA's file was not given.
    """
    if setting.templama is None:
        raise SystemExit("--facts FILE (TempLAMA's training file) is needed for the small GPT-2")
    facts = dated_facts(setting.templama)
    folder = trained(Training(), facts, setting.root)
    chosen = facts[:: max(1, len(facts) // setting.small)][: setting.small]
    path = setting.root / f"find-{len(chosen)}.jsonl"
    write_facts(path, chosen)
    return Asked("small GPT-2", str(folder), str(path), len(chosen))


def beside(setting: Setting, asked: Asked) -> Iterator[Row]:
    """Rows of one model: processor seconds a fact, operations, the bound, how alike results are."""
    case = f"{asked.name}, {asked.n} facts"
    before = f"before ({setting.before})"
    with tempfile.TemporaryDirectory() as folder:
        then = tree_of(setting.before, Path(folder))
        same = asked.work(filter={"n_regrouped": 0})
        with (
            Engine(then, **asked.work()) as old,
            Engine(ROOT, **asked.work()) as new,
            Engine(ROOT, **same) as less,
        ):
            engines = {before: old, OURS: new, SAME_WORK: less}
            counts = {name: engine.ask("count")["gflop"] for name, engine in engines.items()}
            # Each goes first as often as the other.
            turns = [
                {name: engines[name].ask("time") for name in list(engines)[:: 1 - 2 * (turn % 2)]}
                for turn in range(setting.turns)
            ]
    for name in engines:
        times = [turn[name]["seconds"] / asked.n for turn in turns]
        bounds = [counts[name] / turn[name]["rate"] / asked.n for turn in turns]
        yield row(case, name, "cpu_seconds_per_fact", times)
        yield row(case, name, "gflop_per_fact", [counts[name] / asked.n])
        yield row(case, name, "lower_bound_seconds_per_fact", bounds)
    for name in (OURS, SAME_WORK):
        ratios = [turn[before]["seconds"] / turn[name]["seconds"] for turn in turns]
        yield row(case, name, "times_as_fast_as_before", ratios)
    different, apart = alike(turns[0][before]["results"], turns[0][OURS]["results"])
    yield row(case, OURS, "facts_with_another_dkn_than_before", [different])
    yield row(case, OURS, "drops_apart_from_before", [apart])
    known = sum(r["status"] == "ok" for r in turns[0][OURS]["results"])
    yield row(case, OURS, "known", [known])
    yield row(case, "published procedure", "cpu_seconds_per_fact", [published_seconds(asked)])


def published_seconds(asked: Asked) -> float:
    """Processor seconds of the published procedure, all stages, on one fact that has one token.

    Raises:
        SystemExit: no fact's answer is a single token.
    """
    model, tokenizer = dkn.load_model(asked.model, device="cpu")
    for fact in dkn.load_facts(asked.facts):
        sequence = encode_sequence(
            model, tokenizer, fact.prompt, fact.answer, config=FactsConfig(), fact_id=fact.id
        )
        if len(sequence.targets) == 1:
            break
    else:
        raise SystemExit(f"no answer in {asked.facts} is a single token")
    case = peers.Case(model, find_layout(model), sequence, mask_token_id(tokenizer), "pre")
    start = time.process_time()
    published(case)
    return time.process_time() - start


def scaling(setting: Setting) -> Iterator[Row]:
    """Facts a second by number of facts, by rows_per_batch, and by facts_per_chunk; demo model."""
    runs: dict[str, tuple[int, dict[str, Any]]] = {
        **{f"facts {n}": (n, {}) for n in (1, 2, 4, 8, 16, 32)},
        **{
            f"rows_per_batch {rows}": (8, {"attribution": {"rows_per_batch": rows}})
            for rows in (64, 256, 1024, 4096)
        },
        **{f"facts_per_chunk {n}": (16, {"facts_per_chunk": n}) for n in (1, 4, 16)},
    }
    for case, (n, config) in runs.items():
        with Engine(ROOT, **Asked("", "demo", "demo", n).work(**config)) as engine:
            rates = [n / engine.ask("time")["seconds"] for _ in range(setting.turns)]
        yield row(f"demo model, {case}", OURS, "facts_per_cpu_second", rates)


def memory(setting: Setting) -> Iterator[Row]:
    """The most resident MiB above the loaded model, a process each; demo model."""
    runs: dict[str, tuple[int, dict[str, Any]]] = {
        **{f"facts {n}": (n, {}) for n in (8, 32, 96)},
        **{
            f"rows_per_batch {rows}": (8, {"attribution": {"rows_per_batch": rows}})
            for rows in (64, 256)
        },
    }
    for case, (n, config) in runs.items():
        with Engine(ROOT, **Asked("", "demo", "demo", n).work(**config)) as engine:
            mib = engine.ask("peak")["mib"]
        yield row(f"demo model, memory, {case}", OURS, "peak_mib_above_model", [mib])


def workers(setting: Setting) -> Iterator[Row]:
    """Two workers beside one, in turns, wall-clock: only on a machine with two cores to itself."""
    if setting.templama is None:
        raise SystemExit("--facts FILE (TempLAMA's training file) is needed for this case")
    templama = TempLama(setting.templama, root=setting.root)
    every = dated_facts(setting.templama)
    facts, model = some_facts(templama), str(trained(Training(), every, setting.root))

    def seconds(n: int) -> float:
        out = fresh(templama, "find")
        return watched_find(model, facts.path, out, facts.n, "--workers", str(n)).seconds

    ratios = [seconds(1) / seconds(2) for _ in range(setting.turns)]
    yield row("small GPT-2, 2 workers", OURS, "times_as_fast_as_1_worker", ratios)


PLANS = {
    "8 facts, a GiB of rows": Plan(8),
    "8 facts, 1,024 rows": Plan(8, 1024),
    "8 facts, 4,096 rows": Plan(8, 4096),
    "32 facts, 4,096 rows": Plan(32, 4096),
}


def paper(setting: Setting) -> Iterator[Row]:
    """GPT-2 and LLaMA-2-7B on one H100, by calculation, from rows counted with both engines."""
    work: dict[str, Any] = {"model": "demo", "facts": "demo", "n": 8, "paraphrases": False}
    with tempfile.TemporaryDirectory() as folder:
        old = tree_of(setting.before, Path(folder))
        for provider, tree in ((f"before ({setting.before})", old), (OURS, ROOT)):
            one_by_one = tree == old and setting.before == BEFORE
            # As many rows as there are: the calculation divides them.
            config = {"attribution": {"rows_per_batch": 1 << 20}}
            with Engine(tree, **work, config=config) as engine:
                counted = Counted.of(engine.ask("stages"), one_by_one=one_by_one)
            yield from on_paper(provider, counted)


def on_paper(provider: str, counted: Counted) -> Iterator[Row]:
    """Rows of the calculation, by model, plan and stage."""
    for model, m in MODELS.items():
        for label, plan in PLANS.items():
            case, stages = f"{model}, {label}", calculated(counted, m, plan)
            for name, stage in stages.items():
                for part, seconds in zip(PARTS, stage.parts(m), strict=True):
                    yield row(case, provider, f"{name}_{part}_ms", [1e3 * seconds])
                yield row(case, provider, f"{name}_climbs", [stage.climbs])
            yield row(case, provider, "milliseconds_per_fact", [milliseconds(stages, m)])


CASES: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "demo": demo,
    "small": small,
    "scaling": scaling,
    "memory": memory,
    "paper": paper,
    "workers": workers,
}
# The others need TempLAMA's file, or a machine with nothing beside it.
BY_DEFAULT = ("demo", "scaling", "memory", "paper")


def main() -> None:
    """Parse the options; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--facts", type=Path, help="TempLAMA's training file")
    parser.add_argument("--before", default=BEFORE, help="commit that stands beside this tree")
    parser.add_argument("--turns", type=int, default=Setting.turns, help="of each engine")
    parser.add_argument("--demo", type=int, default=Setting.demo, help="facts of the demo model")
    parser.add_argument("--small", type=int, default=Setting.small, help="facts of the small GPT-2")
    parser.add_argument("--table", action="store_true", help="print the tables, measure nothing")
    args = parser.parse_args()
    unknown = sorted(set(args.cases) - set(CASES))
    if unknown:
        parser.error(f"CASE must be one of {', '.join(CASES)}; got {unknown[0]!r}")
    torch.set_num_threads(1)
    setting = Setting(args.facts, args.before, args.turns, args.demo, args.small)
    chosen = args.cases or [*BY_DEFAULT, *(["small"] if args.facts else [])]
    for name in () if args.table else chosen:
        rows = []
        for one in CASES[name](setting):
            print(f"{one.case:32} {one.provider:26} {one.metric:36} {one.median:.5g}", flush=True)
            rows.append(one)
        renew(FILE, rows)
    print(table(read(FILE)))


Figures = dict[tuple[str, str, str], float]


def table(rows: list[dict[str, str]]) -> str:
    """What docs/whole_run.md shows of the rows."""
    figures = {(r["case"], r["provider"], r["metric"]): float(r["median"]) for r in rows}
    return "\n".join([*measured_lines(figures), "", *paper_lines(figures)])


def measured_lines(figures: Figures) -> Iterator[str]:
    """Processor seconds, the bound and the ratio, a line an engine; blank where there is none."""
    yield f"{'':48} {'CPU s a fact':>12} {'bound':>8} {'GFLOP':>8} {'times':>6}"
    columns = (
        ("cpu_seconds_per_fact", 12, 4),
        ("lower_bound_seconds_per_fact", 8, 4),
        ("gflop_per_fact", 8, 2),
        ("times_as_fast_as_before", 6, 2),
    )
    for case, provider, metric in figures:
        if metric == columns[0][0]:
            cells = (
                f"{figures[case, provider, name]:{width}.{places}f}"
                if (case, provider, name) in figures
                else " " * width
                for name, width, places in columns
            )
            yield f"{f'{case}: {provider}':48} {' '.join(cells)}".rstrip()


def paper_lines(figures: Figures) -> Iterator[str]:
    """Milliseconds a fact by stage, each the longest of its three parts, a line a plan."""
    yield f"{'':56} {'clean':>6} {'attrib.':>7} {'filter':>6} {'all, ms':>7}"
    for case, provider, metric in figures:
        if metric == "milliseconds_per_fact":
            clean, attribution, filtered = (
                max(figures[case, provider, f"{stage}_{part}_ms"] for part in PARTS)
                for stage in STAGES
            )
            label, total = f"{case}: {provider.split()[0]}", figures[case, provider, metric]
            yield f"{label:56} {clean:6.1f} {attribution:7.1f} {filtered:6.1f} {total:7.1f}"


if __name__ == "__main__":
    main()
