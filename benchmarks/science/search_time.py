"""Time of the search for covering groups: facts one by one and eight at once, by turns.

The first eight known demo facts, their 60 highest neurons each, the prompt alone, one thread. The
groups found must be the same. Writes benchmarks/results/search_time.csv:
``python -m benchmarks.science.search_time``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

import dkn_engine as dkn
from benchmarks.rows import row, write
from dkn_engine.config import Config
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.choices import Choice, Located
from dkn_engine.degeneracy.covering_choice import covering_choice
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout

FACTS, NEURONS, TURNS = 8, 60, 3
CONFIG = Config().set(
    {
        "topology.clustering": "covering",
        "selection.method": "top_k",
        "selection.top_k": NEURONS,
        "selection.max_neurons": NEURONS,
        "filter.n_random_searches": 0,
        "filter.n_random": 1,
    }
)


def located() -> tuple[Prompts, list[Located]]:
    """Known facts with their neurons, and their prompts."""
    model, tokenizer = dkn.load_model("demo")
    facts = dkn.load_facts("demo", limit=2 * FACTS)
    results = dkn.find_dkns(model, tokenizer, facts, CONFIG)
    known = [pair for pair in zip(facts, results, strict=True) if pair[1].status == "ok"][:FACTS]
    sequences = [
        encode_sequence(model, tokenizer, f.prompt, f.answer, config=CONFIG.facts, fact_id=f.id)
        for f, _ in known
    ]
    prompts = Prompts(model, find_layout(model), sequences)
    return prompts, [Located(f, i, result) for i, (f, result) in enumerate(known)]


def searched(prompts: Prompts, some: Sequence[Located]) -> tuple[float, list[list[np.ndarray]]]:
    """Seconds of processor time, and the groups of each fact."""
    start = time.process_time()
    found = together([covering_choice(prompts, one, CONFIG) for one in some])
    seconds = time.process_time() - start
    choices = [one for one in found if isinstance(one, Choice)]
    assert len(choices) == len(some)
    return seconds, [[c.neurons for c in one.components] for one in choices]


def main() -> None:
    torch.set_num_threads(1)
    prompts, facts = located()
    alone: list[float] = []
    at_once: list[float] = []
    for _ in range(TURNS):
        each = [searched(prompts, [one]) for one in facts]
        seconds, groups = searched(prompts, facts)
        alone.append(sum(s for s, _ in each) / len(facts))
        at_once.append(seconds / len(facts))
        for (_, (own,)), other in zip(each, groups, strict=True):
            assert len(own) == len(other)
            assert all(np.array_equal(a, b) for a, b in zip(own, other, strict=True))
    case = f"{len(facts)} demo facts, {NEURONS} neurons, the prompt"
    ratios = np.divide(alone, at_once).tolist()
    write(
        "search_time.csv",
        [
            row(case, "one by one", "processor_seconds_per_fact", alone),
            row(case, "at once", "processor_seconds_per_fact", at_once),
            row(case, "one by one / at once", "ratio", ratios),
        ],
    )


if __name__ == "__main__":
    main()
