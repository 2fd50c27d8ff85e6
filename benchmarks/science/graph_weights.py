"""Whether what joins two neurons in a graph says how strongly they interact.

For every second tuning fact (``defaults.tuning_facts``) and each way of joining neurons
(``graphs.GRAPHS``): the rank correlation, over all pairs of the fact's knowledge neurons of the
highest scores that are in different layers, of the strength of their connection (1 / distance) with
the size of their exact interaction (``dkn.interactions``). Pairs that a graph does not join have
strength 0.

Writes benchmarks/results/graph_weights.csv, a row a fact; docs/graphs.md reads it. One thread:
``python -m benchmarks.science.graph_weights``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

import dkn_engine as dkn
from benchmarks.rows import records_csv, write_csv
from benchmarks.science.defaults import tuning_facts
from benchmarks.science.graphs import GRAPHS
from benchmarks.science.interactions import MOST_NEURONS
from dkn_engine.config import FactsConfig, SelectionConfig, TopologyConfig
from dkn_engine.degeneracy.component_choice import activation_sizes, influence
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from dkn_engine.selection import select_neurons
from dkn_engine.topology import distances, residual_distances, weight_distances

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "graph_weights.csv"


def strengths(
    prompts: Prompts, neurons: NDArray[np.int32], config: TopologyConfig
) -> NDArray[np.float64]:
    """1 / distance ``[n, n]`` of neurons that are joined directly, 0 of others."""
    if config.connections == "influence":
        matrix = weight_distances(neurons, influence(prompts, 0, neurons))
    else:
        w_out, w_in = connection_rows(prompts.layout, neurons, config)
        if config.by_activation:
            w_out = w_out * activation_sizes(prompts, 0, neurons)[:, None]
        graph = neurons, w_out, w_in
        any_two = config.connections == "residual"
        matrix = residual_distances(*graph) if any_two else distances(*graph, max_span=1)
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = 1 / matrix
    np.fill_diagonal(found, 0.0)
    return found


def row(model: Any, tokenizer: Any, fact: dkn.Fact) -> dict[str, object]:
    """The CSV row of a fact."""
    scores = dkn.attribute(model, tokenizer, [fact]).scores
    neurons = select_neurons(scores, SelectionConfig()).neurons[:MOST_NEURONS]
    (one,) = dkn.interactions(model, tokenizer, [fact], neurons)
    sequence = encode_sequence(model, tokenizer, fact.prompt, fact.answer, config=FactsConfig())
    prompts = Prompts(model, find_layout(model), [sequence])
    a, b = np.triu_indices(len(neurons), 1)
    apart = neurons[a, 0] != neurons[b, 0]
    a, b = a[apart], b[apart]
    found: dict[str, object] = {"fact": fact.id, "neurons": len(neurons), "pairs": len(a)}
    for name, options in GRAPHS.items():
        joined = strengths(prompts, neurons, TopologyConfig(**options))[a, b]
        rank = spearmanr(joined, np.abs(one.matrix[a, b])).statistic
        found[name] = round(float(rank), 3)
    return found


def main() -> None:
    """Measure the tuning facts, and write the table after each of them."""
    torch.set_num_threads(1)
    model, tokenizer = dkn.load_model("demo", device="cpu")
    rows = []
    for fact in tuning_facts(model, tokenizer)[::2]:
        rows.append(row(model, tokenizer, fact))
        write_csv(OUTPUT, records_csv(rows))
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
