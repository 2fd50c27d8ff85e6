"""The headline figures of docs/results.md and the README: packaged sets, default settings.

Writes benchmarks/results/headline.csv, a row for each set and figure with its 95 % interval (none
of a mean of fewer than six facts) and its median, and the per-fact table of the demo set as
demo_facts.csv. The control that decides stands beside every figure of the facts with a DKN: the
same figure of the facts without one, most of all on paraphrases that were not used for finding.
Where a redundancy's n is smaller than that of the drops beside it, the other facts have none, and
the excess of the same log-drops stands in. Beside the count of DKNs stands what the null finds:
each fact's own neurons regrouped. Run it alone: ``python -m benchmarks.science.headline``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import dkn_engine as dkn
from benchmarks.rows import write_csv
from dkn_engine.files.csv import csv_text
from dkn_engine.report import Estimate, Summary, mean_estimate, summarize
from dkn_engine.statistics.intervals import COUNTED
from dkn_engine.types import Drops

SETS = ("demo", "demo-unselected")
RESULTS = Path(__file__).resolve().parents[1] / "results"
COLUMNS = ("facts", "figure", "n", "mean", "ci_low", "ci_high", "median")


_DROPS = ("partial_drop", "full_drop", "redundancy", "excess")
FACT_COLUMNS = (
    *("fact", "status", "p", "neurons", "components", "dkn_sizes"),
    *_DROPS,
    *(f"paraphrases_{name}" for name in _DROPS),
    *("paraphrases", "paraphrases_not_known"),
)


def counts(summary: Summary) -> dict[str, int]:
    """What the figures of a set leave out, and what its controls were measured on."""
    return {
        "held-out paraphrases": summary.n_paraphrases,
        "held-out paraphrases not known": summary.n_paraphrases_not_known,
        "facts whose controls are on 32 subsets at most": summary.n_sampled_controls,
        "reference facts": summary.n_reference or 0,
        "reference facts packaged": summary.n_reference_packaged or 0,
    }


def figures(summary: Summary) -> Iterator[tuple[str, Estimate]]:
    """Name and estimate of every figure of a set."""
    yield "share with two or more components", summary.with_candidates
    yield "share degenerate", summary.degenerate
    yield "knowledge neurons", summary.neurons
    yield "components", summary.components
    yield from by_chance(summary)
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
            yield f"{family}, {name}: excess", row.excess


def by_chance(summary: Summary) -> Iterator[tuple[str, Estimate]]:
    """What the null finds on the same facts, and how many DKNs hold on held-out paraphrases."""
    if (chance := summary.chance) is not None:
        yield "DKNs that the null finds", Estimate.alone(chance.expected, chance.n, COUNTED)
        yield "share degenerate beyond the null", chance.beyond
        # Eight draws a fact give no p-value that could count at a false discovery rate of 5 %, so
        # that nothing is said of single DKNs.
    holding = Estimate.alone(summary.n_holding, summary.n_held_out_dkn, COUNTED)
    yield "DKNs that hold on held-out paraphrases", holding


def alone(results: Sequence[dkn.FactResult]) -> Estimate:
    """With all knowledge neurons but one component of the DKN off: the share of p kept by the best.

    What a component needs of the fact's other knowledge neurons shows in what it keeps without.
    """
    return mean_estimate(
        [r.rest_suppressed[:-1].max() / r.probability for r in results if r.is_degenerate]
    )


def write(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """One CSV file of the results folder."""
    write_csv(RESULTS / name, csv_text(columns, rows))


def fact_row(r: dkn.FactResult) -> tuple[object, ...]:
    """One fact of the per-fact table."""
    sizes = "+".join(str(len(r.components[i].neurons)) for i in r.dkn)
    held_out = r.controls.get("paraphrases", Drops(math.nan, math.nan, n=0))
    drops = (f"{getattr(of, name):.3f}" for of in (r, held_out) for name in _DROPS)
    p = f"{r.probability:.3f}"
    size = (len(r.neurons), len(r.components), sizes)
    return (r.fact_id, r.status, p, *size, *drops, held_out.n, r.n_paraphrases_not_known)


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
        for figure, n in counts(summary).items():
            rows.append((name, figure, n, "", "", "", ""))
        own = ("DKN, all other knowledge neurons suppressed: share kept", alone(results))
        for figure, e in [*figures(summary), own]:
            values = (f"{v:.4f}" for v in (e.mean, e.ci_low, e.ci_high, e.median))
            rows.append((name, figure, e.n, *values))
        print(f"{name}: {time.perf_counter() - start:.1f} s")
        if name == "demo":
            write("demo_facts.csv", FACT_COLUMNS, [fact_row(r) for r in results])
    write("headline.csv", COLUMNS, rows)


if __name__ == "__main__":
    main()
