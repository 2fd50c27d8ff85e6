"""What each departure of the published code changes: one at a time, then all, on the demo facts.

Every row is a whole run that differs from the default settings in what its second column says
(the last rows differ in everything that ``Config.released()`` names). Controls are left out: they
change none of these figures. Writes benchmarks/results/departures.csv after every run; the page
docs/released.md reads it. Run it alone: ``python -m benchmarks.science.departures [N facts]``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dkn_engine as dkn
from benchmarks.rows import records_csv, write_csv
from dkn_engine.cli.settings import config_from_options
from dkn_engine.report import summarize
from dkn_engine.statistics.intervals import Estimate

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "departures.csv"
NO_CONTROLS = ("filter.n_random=0", "filter.n_regrouped=0", "filter.n_unrelated=0")

# Stage, departure, and the settings that make it.
DEPARTURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("default", ()),
    ("site: pre", ("attribution.site=pre",)),
    ("baseline: answer tokens masked, too", ("attribution.masked_tokens=all",)),
    ("factor: x, not x - x'", ("attribution.multiply_by=activation",)),
    ("factor: x of the first token", ("attribution.multiply_by=first_activation",)),
    ("rule: 20 left points", ("attribution.quadrature=riemann_left", "attribution.n_steps=20")),
    ("target: no leading space", ("facts.answer_space=false",)),
    ("target: special tokens count", ("facts.answer_special_tokens=true",)),
    ("target: greedy continuation", ("facts.teacher_forced=false",)),
    (
        "target: its first token again and again",
        ("facts.teacher_forced=false", "facts.repeat_first_token=true"),
    ),
    (
        "target: suppressed models' own text",
        ("facts.teacher_forced=false", "facts.continuation=edited_text"),
    ),
    ("target: scores summed", ("attribution.answer_tokens=sum",)),
    ("neurons: threshold 0.2", ("selection.threshold=0.2",)),
    ("direction: reversed", ("topology.direction=reversed",)),
    ("spans: enumerated, up to 3", ("topology.spans=released", "topology.max_span=3")),
    (
        "clusters: the published procedure",
        ("topology.clustering=released", "topology.max_span=3", "topology.end_value=0.2"),
    ),
    ("filter: published", ("filter.method=released",)),
)
# Without the leading space the demo model knows next to nothing, so that all the rest is shown too.
TOGETHER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("all but the missing space", ("facts.answer_space=true",)),
    ("all: Config.released()", ()),
)


def config_of(changes: Sequence[str]) -> dkn.Config:
    """The default settings with some of them changed, without controls."""
    return config_from_options("default", changes=[*changes, *NO_CONTROLS])


def configs() -> list[tuple[str, str, dkn.Config]]:
    """Name, settings in words, configuration of every run."""
    single = [(name, " ".join(changes), config_of(changes)) for name, changes in DEPARTURES]
    together = [
        (
            name,
            " ".join(("--preset released", *changes)),
            config_from_options("released", changes=[*changes, *NO_CONTROLS]),
        )
        for name, changes in TOGETHER
    ]
    return [*single, *together]


def row(name: str, changes: str, results: Sequence[dkn.FactResult]) -> dict[str, Any]:
    """One run's line of the table."""
    s = summarize(results)
    known = [r for r in results if r.status == "ok"]
    return {
        "departure": name,
        "settings": changes,
        "facts": s.n_facts,
        "known": s.n_known,
        "neurons": _figure(s.neurons, 1),
        "components": _figure(s.components, 2),
        "two_or_more": s.n_with_candidates,
        "with_dkn": s.n_degenerate,
        "members": f"{_mean([len(r.dkn) for r in known if r.is_degenerate]):.2f}",
        "candidates_partial": _figure(s.candidates.drops.partial_drop, 3),
        "candidates_full": _figure(s.candidates.drops.full_drop, 3),
        "dkn_partial": _figure(s.dkn.drops.partial_drop, 3),
        "dkn_full": _figure(s.dkn.drops.full_drop, 3),
        "dkn_redundancy_median": f"{s.dkn.drops.redundancy.median:.3f}",
        "points_per_layer": f"{s.points_per_layer:.2f}",
    }


def _figure(estimate: Estimate, places: int) -> str:
    return f"{estimate.mean:.{places}f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def write(rows: Sequence[dict[str, Any]]) -> None:
    """The table so far."""
    write_csv(OUTPUT, records_csv(rows))


def main() -> None:
    """One run a departure."""
    torch.set_num_threads(1)
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else None
    model, tokenizer = dkn.load_model("demo", device="cpu")
    facts = dkn.load_facts("demo", limit=limit)
    rows = []
    for name, changes, config in configs():
        results = dkn.find_dkns(model, tokenizer, facts, config)
        rows.append(row(name, changes, results))
        print(*rows[-1].values(), sep=" | ", flush=True)
        write(rows)


if __name__ == "__main__":
    main()
