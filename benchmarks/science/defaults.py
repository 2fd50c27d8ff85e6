"""The settings among which the defaults were chosen, measured on facts used for nothing else.

The tuning facts are the candidates of ``select_demo_facts`` that the demo model knows (rank 1,
p >= 0.05) and that are in neither packaged set, so the packaged sets can be reported honestly.
For each setting of the KN threshold, the end of the filtration (a quantile of the adjacent
distances) and the selection of a disjoint family, the whole subset lattice of every fact is
measured once; shares of degenerate facts are read off it for several tau.

Rule: tau_2 = tau_3, since then components that act independently can never pass (each alone keeps
a share r >= tau_2 of the probability, all suppressed leave r of the weakest, so r <= tau_3 as
well); of the settings in which at least 90 % of the facts have two or more candidates, the one
with the largest share of degenerate facts over the taus tried.

Writes benchmarks/results/defaults.csv. Run it alone: ``python -m benchmarks.science.defaults``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dkn_engine as dkn
from benchmarks.rows import records_csv, write_csv
from benchmarks.science.select_demo_facts import candidates, score
from dkn_engine.config import FactsConfig, SelectionConfig, TopologyConfig
from dkn_engine.degeneracy.controls import lattice_of
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import Layout, find_layout
from dkn_engine.selection import select_neurons
from dkn_engine.topology.clustering import find_candidates
from dkn_engine.types import Component, Fact

THRESHOLDS = (0.05, 0.1, 0.15, 0.2)
QUANTILES = (0.1, 0.3, 0.6)
SELECT = ("persistence", "leaf")
TAUS = (0.5, 0.6, 0.7, 0.8)
MIN_PROBABILITY = 0.05
MIN_WITH_CANDIDATES = 0.9
OUTPUT = Path(__file__).resolve().parents[1] / "results" / "defaults.csv"


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    threshold: float
    end_quantile: float
    select: str

    def topology(self) -> TopologyConfig:
        select: Any = self.select
        return TopologyConfig(end="quantile", end_value=self.end_quantile, select=select)


@dataclass(frozen=True, eq=False)
class Found:
    """What one setting gives for one fact."""

    n_neurons: int
    components: tuple[Component, ...]
    lattice: Lattice

    def is_degenerate(self, tau: float) -> bool:
        persistence = [c.persistence for c in self.components]
        return len(degenerate_family(self.lattice, persistence, tau, tau)) >= 2


def tuning_facts(model: Any, tokenizer: Any) -> list[Fact]:
    """Known candidates that are in no packaged set."""
    packaged = {f.id for name in ("demo", "demo-unselected") for f in dkn.load_facts(name)}
    facts = [f for f in candidates() if f.id not in packaged]
    known = score(model, tokenizer, facts)
    return [
        f
        for f, k in zip(facts, known, strict=True)
        if k.rank == 1 and k.probability >= MIN_PROBABILITY
    ]


def measure(layout: Layout, prompts: Prompts, scores: np.ndarray, setting: Setting) -> Found:
    """Neurons, components and subset lattice of one fact."""
    selection = select_neurons(scores, SelectionConfig(threshold=setting.threshold))
    config = setting.topology()
    rows = connection_rows(layout, selection.neurons, config)
    components = find_candidates(selection.neurons, *rows, config)
    masks = np.arange(1 << len(components))
    lattice = lattice_of(prompts, 0, [c.neurons for c in components], masks)
    return Found(len(selection.neurons), components, lattice)


def summary(setting: Setting, found: list[Found]) -> dict[str, object]:
    """The CSV row of one setting."""
    measured = [drops(f.lattice) for f in found if f.components]
    return {
        "threshold": setting.threshold,
        "end_quantile": setting.end_quantile,
        "select": setting.select,
        "facts": len(found),
        "median_neurons": float(np.median([f.n_neurons for f in found])),
        "with_candidates": f"{np.mean([len(f.components) >= 2 for f in found]):.3f}",
        "components": f"{np.mean([len(f.components) for f in found]):.2f}",
        **{
            f"degenerate_{tau}": f"{np.mean([f.is_degenerate(tau) for f in found]):.3f}"
            for tau in TAUS
        },
        "partial_drop": f"{np.nanmean([d.partial_drop for d in measured]):.3f}",
        "full_drop": f"{np.nanmean([d.full_drop for d in measured]):.3f}",
        "median_redundancy": f"{np.nanmedian([d.redundancy for d in measured]):.3f}",
    }


def rows() -> Iterator[dict[str, object]]:
    """One row a setting."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    layout = find_layout(model)
    facts = tuning_facts(model, tokenizer)
    scores = dkn.attribute(model, tokenizer, facts).scores
    prompts = []
    for fact in facts:
        sequence = encode_sequence(model, tokenizer, fact.prompt, fact.answer, config=FactsConfig())
        prompts.append(Prompts(model, layout, [sequence]))
    for values in itertools.product(THRESHOLDS, QUANTILES, SELECT):
        setting = Setting(*values)
        yield summary(
            setting, [measure(layout, p, s, setting) for p, s in zip(prompts, scores, strict=True)]
        )


def main() -> None:
    """Measure every setting, write the table, name the setting that the rule picks."""
    torch.set_num_threads(1)
    table = []
    for row in rows():
        table.append(row)
        print(*row.values(), file=sys.stderr)
    write_csv(OUTPUT, records_csv(table))
    enough = [r for r in table if float(str(r["with_candidates"])) >= MIN_WITH_CANDIDATES]
    best = max(
        ((float(str(r[f"degenerate_{tau}"])), tau, r) for r in enough for tau in TAUS),
        key=lambda found: found[0],
    )
    share, tau, row = best
    print(f"tau_2 = tau_3 = {tau}: {share:.0%} degenerate with", row)


if __name__ == "__main__":
    main()
