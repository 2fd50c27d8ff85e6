"""The headline figures of the README: the packaged sets, by the default settings.

Writes benchmarks/results/headline.csv, a row for each set and figure with its 95 % interval, and
the per-fact table of the demo set as demo_facts.csv. Run it alone:
``python -m benchmarks.headline``.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import dkn_engine as dkn
from dkn_engine.report import Estimate, Summary, summarize

SETS = ("demo", "demo-unselected")
RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("facts", "figure", "n", "mean", "ci_low", "ci_high", "median")


def figures(summary: Summary) -> Iterator[tuple[str, Estimate]]:
    """Name and estimate of every figure of a set."""
    yield "share with two or more components", summary.with_candidates
    yield "share degenerate", summary.degenerate
    yield "knowledge neurons", summary.neurons
    yield "components", summary.components
    families = {
        "DKN": summary.dkn,
        "candidates without a DKN": summary.no_dkn,
        "all candidates": summary.candidates,
    }
    for family, group in families.items():
        if not group.n:
            continue
        for name, row in {"itself": group.drops, **group.controls}.items():
            yield f"{family}, {name}: partial drop", row.partial_drop
            yield f"{family}, {name}: full drop", row.full_drop
            yield f"{family}, {name}: redundancy", row.redundancy


def write(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """One CSV file of the results folder."""
    with (RESULTS / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def fact_row(r: dkn.FactResult) -> tuple[object, ...]:
    """One fact of the per-fact table."""
    sizes = "+".join(str(len(r.components[i].neurons)) for i in r.dkn)
    drops = (f"{v:.3f}" for v in (r.partial_drop, r.full_drop, r.redundancy))
    p = f"{r.probability:.3f}"
    return (r.fact_id, r.status, p, len(r.neurons), len(r.components), sizes, *drops)


def main() -> None:
    """Run both sets and write both tables."""
    torch.set_num_threads(1)
    model, tokenizer = dkn.load_model("demo", device="cpu")
    rows: list[tuple[object, ...]] = []
    for name in SETS:
        start = time.perf_counter()
        results = dkn.find_dkns(model, tokenizer, dkn.load_facts(name))
        summary = summarize(results)
        rows.append((name, "facts", summary.n_facts, "", "", "", ""))
        rows.append((name, "facts known", summary.n_known, "", "", "", ""))
        for figure, e in figures(summary):
            values = (f"{v:.4f}" for v in (e.mean, e.ci_low, e.ci_high, e.median))
            rows.append((name, figure, e.n, *values))
        print(f"{name}: {time.perf_counter() - start:.1f} s")
        if name == "demo":
            columns = ("fact", "status", "p", "neurons", "components", "dkn_sizes")
            drops = ("partial_drop", "full_drop", "redundancy")
            write("demo_facts.csv", (*columns, *drops), [fact_row(r) for r in results])
    write("headline.csv", COLUMNS, rows)


if __name__ == "__main__":
    main()
