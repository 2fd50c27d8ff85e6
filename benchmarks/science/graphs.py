"""Graphs of located neurons, and families of one level or of the whole tree, beside chance.

Each way of joining neurons (``TopologyConfig.connections`` and what goes with it) makes a merge
tree; its candidates are the leaf family, as by default, or all nodes (``select="tree"``). Chance is
the same with the neurons' labels permuted within their layers after the tree was built: the same
tree, sizes and layers, other neurons; with the whole tree the choice among nodes is repeated.

Tuning facts are every second one of ``defaults.tuning_facts``. Rule: the option whose share of
degenerate facts is furthest above its chance there is measured on other facts, beside the default
and the whole tree of the paper's graph. Those are of a file of ParaRel's capitals: each question
once that the demo model answers (rank 1, p >= 0.05) and whose answer is neither answer nor subject
of any candidate of the packaged or tuning facts. A family is judged also on those of the fact's
paraphrases that the model knows, of which none was used.

Writes benchmarks/results/graphs.csv, a row an option, set of facts and labels, after every fact;
docs/graphs.md reads it. One thread: ``python -m benchmarks.science.graphs PARAREL_BAGS``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import dkn_engine as dkn
from benchmarks.rows import records_csv, write_csv
from benchmarks.science.defaults import MIN_PROBABILITY, tuning_facts
from benchmarks.science.select_demo_facts import candidates, score
from dkn_engine.config import Config, FactsConfig, FilterConfig, SelectionConfig, TopologyConfig
from dkn_engine.degeneracy.asked_together import Measurement, together
from dkn_engine.degeneracy.choices import Located
from dkn_engine.degeneracy.component_choice import graph_components
from dkn_engine.degeneracy.controls import Sets, lattice_of, measured_lattice
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.lattice import degenerate_family, drops
from dkn_engine.degeneracy.reference_facts import knows
from dkn_engine.degeneracy.tree_families import tree_family
from dkn_engine.errors import FactError
from dkn_engine.forward.encoding import encode_sequence, encode_sequences
from dkn_engine.models.layout import find_layout
from dkn_engine.neurons import encode
from dkn_engine.seeds import generator
from dkn_engine.selection import select_neurons
from dkn_engine.statistics.intervals import Estimate, mean_estimate, wilson_share
from dkn_engine.types import Component, Fact

OUTPUT = Path(__file__).resolve().parents[1] / "results" / "graphs.csv"
GRAPHS: dict[str, dict[str, Any]] = {
    "adjacent": {},
    "adjacent, gain": {"fold_norm": True},
    "adjacent, gain, activation": {"fold_norm": True, "by_activation": True},
    "any, gain": {"connections": "residual", "fold_norm": True},
    "any, gain, activation": {
        "connections": "residual",
        "fold_norm": True,
        "by_activation": True,
    },
    "influence": {"connections": "influence"},
}
SELECT = ("leaf", "tree")
LABELS = ("own", "permuted")
Option = tuple[str, str]
# Measured on other facts whichever option is the best.
ALWAYS = (("adjacent", "leaf"), ("adjacent", "tree"))
OPTIONS: tuple[Option, ...] = tuple((graph, select) for graph in GRAPHS for select in SELECT)


@dataclass(frozen=True)
class Outcome:
    """What one option gives for one fact.

    ``candidates`` counts components, or nodes of the tree, ``rows`` suppressions; the figures are
    the family's own, and ``held_out`` those on its known paraphrases; NaN without a family, or
    without those.
    """

    candidates: int
    rows: int
    members: int
    full_drop: float = float("nan")
    redundancy: float = float("nan")
    held_out_alone: float = float("nan")
    held_out_full_drop: float = float("nan")
    held_out_redundancy: float = float("nan")

    @property
    def holds(self) -> bool:
        """On held-out paraphrases one suppressed costs little, all suppressed much."""
        return self.held_out_alone <= 0.35 and self.held_out_full_drop >= 0.5


def permuted(
    components: Sequence[Component], neurons: NDArray[np.int32], rng: np.random.Generator
) -> tuple[Component, ...]:
    """The components with all located neurons' labels permuted within their layers."""
    other = neurons.copy()
    for layer in np.unique(neurons[:, 0]):
        at = np.flatnonzero(neurons[:, 0] == layer)
        other[at] = neurons[rng.permutation(at)]
    order = np.argsort(encode(neurons))
    places = [order[np.searchsorted(encode(neurons[order]), encode(c.neurons))] for c in components]
    return tuple(
        dataclasses.replace(c, neurons=other[at]) for c, at in zip(components, places, strict=True)
    )


def family(
    prompts: Prompts, components: Sequence[Component], config: Config
) -> Measurement[tuple[Sets, int]]:
    """The degenerate family among a fact's candidates or all nodes of its tree; suppressions."""
    if config.topology.select == "tree":
        chosen = yield from tree_family(prompts, 0, components, config)
        members = chosen.members if chosen.passes else ()
        return [components[i].neurons for i in members], chosen.n_rows
    masks = np.arange(1 << len(components))
    sets = [c.neurons for c in components]
    lattice = yield from measured_lattice(prompts, 0, sets, masks)
    taus = config.filter.min_alone, config.filter.max_none
    found = degenerate_family(lattice, [c.persistence for c in components], *taus)
    return [sets[i] for i in found], len(masks)


def outcome(
    prompts: Prompts, paraphrases: Prompts | None, n: int, n_rows: int, sets: Sets
) -> Outcome:
    """The figures of a family of sets, none if there is no family; n candidates."""
    if not sets:
        return Outcome(n, n_rows, 0)
    every = (1 << len(sets)) - 1
    masks = np.unique([0, every, *(1 << i for i in range(len(sets)))])
    own = drops(lattice_of(prompts, 0, sets, masks))
    figures = n, n_rows, len(sets), own.full_drop, own.redundancy
    known = np.flatnonzero(knows(paraphrases, FilterConfig())).tolist() if paraphrases else []
    if paraphrases is None or not known:
        return Outcome(*figures)
    others = [lattice_of(paraphrases, i, sets, masks) for i in known]
    alone = [1 - o.at(1 << i) / o.at(0) for o in others for i in range(len(sets))]
    there = [drops(o) for o in others]
    return Outcome(
        *figures,
        float(np.mean(alone)),
        float(np.mean([d.full_drop for d in there])),
        float(np.median([d.redundancy for d in there])),
    )


def measured(
    model: Any,
    tokenizer: Any,
    fact: Fact,
    options: Sequence[Option],
    selection_config: SelectionConfig | None = None,
) -> dict[tuple[Option, str], Outcome]:
    """Every option on one fact, with its own and with permuted labels."""
    layout, facts_config = find_layout(model), FactsConfig()
    scores = dkn.attribute(model, tokenizer, [fact]).scores
    selection = select_neurons(scores, selection_config or SelectionConfig())
    sequence = encode_sequence(model, tokenizer, fact.prompt, fact.answer, config=facts_config)
    prompts = Prompts(model, layout, [sequence])
    texts = [(p, fact.answer) for p in fact.paraphrases]
    held_out = encode_sequences(model, tokenizer, texts, config=facts_config)
    paraphrases = Prompts(model, layout, held_out) if held_out else None
    asked: dict[tuple[Option, str], tuple[int, Measurement[tuple[Sets, int]]]] = {}
    for graph, select in options:
        config = Config(topology=TopologyConfig(select=select, **GRAPHS[graph]))  # type: ignore[arg-type]
        own = graph_components(prompts, Located(fact, 0, selection), config.topology)
        other = permuted(own, selection.neurons, generator(0, fact.id, "permuted labels"))
        for labels, components in zip(LABELS, (own, other), strict=True):
            name = ((graph, select), labels)
            asked[name] = len(own), family(prompts, components, config)
    found = together([measurement for _, measurement in asked.values()])
    outcomes = {}
    for (name, (n, _)), one in zip(asked.items(), found, strict=True):
        assert not isinstance(one, FactError)
        sets, n_rows = one
        outcomes[name] = outcome(prompts, paraphrases, n, n_rows, sets)
    return outcomes


def row(facts: str, option: Option, labels: str, found: Sequence[Outcome]) -> dict[str, object]:
    """The CSV row of an option on a set of facts."""
    share = wilson_share(sum(o.members > 0 for o in found), len(found))
    families = [o for o in found if o.members]
    judged = [o for o in families if np.isfinite(o.held_out_full_drop)]

    def median(name: str, of: Sequence[Outcome]) -> float:
        values = [getattr(o, name) for o in of]
        finite = [v for v in values if np.isfinite(v)]
        return round(float(np.median(finite)), 3) if finite else float("nan")

    return {
        "facts": facts,
        "graph": option[0],
        "select": option[1],
        "labels": labels,
        "n": len(found),
        "candidates": median("candidates", found),
        "rows": median("rows", found),
        "degenerate": sum(o.members > 0 for o in found),
        "share_low": round(share.ci_low, 3),
        "share_high": round(share.ci_high, 3),
        "full_drop": median("full_drop", families),
        "redundancy": median("redundancy", families),
        "judged": len(judged),
        "holds": sum(o.holds for o in judged),
        "held_out_alone": median("held_out_alone", judged),
        "held_out_full_drop": median("held_out_full_drop", judged),
        "held_out_redundancy": median("held_out_redundancy", judged),
    }


def beyond_chance(found: Sequence[dict[tuple[Option, str], Outcome]], option: Option) -> Estimate:
    """Mean over facts of having a family, less the same with permuted labels."""
    has = [[one[option, labels].members > 0 for labels in LABELS] for one in found]
    return mean_estimate([float(own) - float(other) for own, other in has])


def difference_row(
    facts: str, option: Option, found: Sequence[dict[tuple[Option, str], Outcome]]
) -> dict[str, object]:
    """The CSV row of the difference between own and permuted labels, paired over facts."""
    one = beyond_chance(found, option)
    empty = dict.fromkeys(row(facts, option, "", [next(iter(found[0].values()))]), "")
    ends = one.bounds
    return empty | {
        "facts": facts,
        "graph": option[0],
        "select": option[1],
        "labels": "own - permuted",
        "n": one.n,
        "degenerate": round(one.mean, 3),
        "share_low": round(ends[0], 3),
        "share_high": round(ends[1], 3),
    }


def other_facts(model: Any, tokenizer: Any, path: str) -> list[Fact]:
    """Known facts of a file, each question once, about nothing that the candidates are about."""
    taken = {text for fact in candidates() for text in (fact.answer, fact.subject)}
    asked: dict[str, Fact] = {}
    for fact in dkn.load_facts(path):
        if fact.answer not in taken:
            asked.setdefault(fact.prompt, fact)
    facts = list(asked.values())
    known = score(model, tokenizer, facts)
    return [
        f
        for f, k in zip(facts, known, strict=True)
        if k.rank == 1 and k.probability >= MIN_PROBABILITY
    ]


def rows(path: str) -> Iterator[list[dict[str, object]]]:
    """The rows so far, after every fact."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    done: list[dict[str, object]] = []
    options: Sequence[Option] = OPTIONS
    for name, facts in (
        ("tuning", tuning_facts(model, tokenizer)),
        ("other", other_facts(model, tokenizer, path)),
    ):
        found = []
        for i, fact in enumerate(facts):
            found.append(measured(model, tokenizer, fact, options))
            now = [row(name, o, l, [f[o, l] for f in found]) for o in options for l in LABELS]
            now += [difference_row(name, option, found) for option in options]
            print(f"{name} {i + 1} of {len(facts)}: {fact.id}", file=sys.stderr, flush=True)
            yield done + now
        done += now
        best = max(options, key=lambda option: beyond_chance(found, option).mean)
        options = tuple(dict.fromkeys([*ALWAYS, best]))


def main(path: str) -> None:
    """Measure all options on the tuning facts, the best on others; write the table as it grows."""
    torch.set_num_threads(1)
    for table in rows(path):
        write_csv(OUTPUT, records_csv(table))


if __name__ == "__main__":
    main(sys.argv[1])
