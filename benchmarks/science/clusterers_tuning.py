"""Free parameters of the other clusterers, chosen as NTC's were, so that the comparison is fair.

The same facts (``defaults.tuning_facts``: in no packaged set), the same KN threshold, the same
tau_2 = tau_3 and the same rule: of a clusterer's settings in which at least 90 % of the facts have
two or more candidates, the one with the largest share of degenerate facts (of all its settings, if
none has so many candidates); ties go to the first.

Writes benchmarks/results/clusterers_tuning.csv. Run it alone:
``python -m benchmarks.science.clusterers_tuning``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dkn_engine as dkn
from benchmarks.rows import records_csv, write_csv
from benchmarks.science.defaults import MIN_WITH_CANDIDATES, Found, tuning_facts
from dkn_engine.config import FactsConfig, SelectionConfig, TopologyConfig
from dkn_engine.degeneracy.controls import lattice_of
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.lattice import drops
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.selection import select_neurons
from dkn_engine.topology.other_clusterers import ClustererOptions, Located, cluster

TAU = dkn.FilterConfig().min_alone
OUTPUT = Path(__file__).resolve().parents[1] / "results" / "clusterers_tuning.csv"
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "ntc": {},
    "dbscan": {"dbscan_quantile": (0.01, 0.03, 0.1, 0.3), "dbscan_min_samples": (2, 3)},
    "hdbscan": {"hdbscan_min_samples": (1, 2, 3), "hdbscan_select": ("leaf", "eom")},
    "hierarchical": {"hierarchical_quantile": (0.1, 0.3, 0.6), "far_quantile": (0.5, 0.9, 1.0)},
    "kmeans": {"kmeans_clusters": (4, 8, 16, 32), "far_quantile": (0.5, 0.9)},
}


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every clusterer with every combination of its parameters."""
    for name, grid in GRIDS.items():
        for values in itertools.product(*grid.values()):
            yield name, dict(zip(grid, values, strict=True))


def measured(prompts: Prompts, located: Located, name: str) -> Found:
    """Candidates of one clusterer and their subset lattice for one fact."""
    components = cluster(name, located)
    masks = np.arange(1 << len(components))
    lattice = lattice_of(prompts, 0, [c.neurons for c in components], masks)
    if name != "ntc":  # No persistence: ties go to the first.
        components = tuple(dkn.Component(c.neurons, 0.0, 0.0, 0.0) for c in components)
    return Found(len(located.points), components, lattice)


def row(name: str, options: dict[str, Any], found: list[Found]) -> dict[str, object]:
    """The CSV row of one setting."""
    of_two = [drops(f.lattice) for f in found if len(f.components) >= 2]
    nan = float("nan")
    return {
        "clusterer": name,
        "settings": " ".join(f"{k}={v}" for k, v in options.items()),
        "facts": len(found),
        "with_candidates": f"{np.mean([len(f.components) >= 2 for f in found]):.3f}",
        "components": f"{np.mean([len(f.components) for f in found]):.2f}",
        "degenerate": f"{np.mean([f.is_degenerate(TAU) for f in found]):.3f}",
        "partial_drop": f"{np.mean([d.partial_drop for d in of_two]) if of_two else nan:.3f}",
        "full_drop": f"{np.mean([d.full_drop for d in of_two]) if of_two else nan:.3f}",
    }


def rows() -> Iterator[dict[str, object]]:
    """One row a setting."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    layout = find_layout(model)
    facts = tuning_facts(model, tokenizer)
    found: dict[int, list[Found]] = {}
    for fact, scores in zip(facts, dkn.attribute(model, tokenizer, facts).scores, strict=True):
        sequence = encode_sequence(model, tokenizer, fact.prompt, fact.answer, config=FactsConfig())
        prompts = Prompts(model, layout, [sequence])
        neurons = select_neurons(scores[None], SelectionConfig()).neurons
        weights = connection_rows(layout, neurons, TopologyConfig())
        for k, (name, options) in enumerate(settings()):
            located = Located(neurons, *weights, options=ClustererOptions(**options))
            found.setdefault(k, []).append(measured(prompts, located, name))
        print(fact.id, len(neurons), file=sys.stderr, flush=True)
    for k, (name, options) in enumerate(settings()):
        yield row(name, options, found[k])


def main() -> None:
    """Measure every setting, write the table, name what the rule picks."""
    torch.set_num_threads(1)
    table = list(rows())
    write_csv(OUTPUT, records_csv(table))
    for name in GRIDS:
        mine = [r for r in table if r["clusterer"] == name]
        enough = [r for r in mine if float(str(r["with_candidates"])) >= MIN_WITH_CANDIDATES]
        print(max(enough or mine, key=lambda r: float(str(r["degenerate"]))))


if __name__ == "__main__":
    main()
