"""What is found in one planted model: its planting, its located neurons, every method's groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import dkn_engine as dkn
from benchmarks.ground_truth import scores
from benchmarks.ground_truth.methods import DRAWN, DRAWS, METHODS, Method, Question
from benchmarks.ground_truth.planted_model import Planted
from dkn_engine.config import (
    AttributionConfig,
    Config,
    FactsConfig,
    FilterConfig,
    Positions,
    SelectionConfig,
)
from dkn_engine.degeneracy.choices import Located
from dkn_engine.degeneracy.controls import lattice_of
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.lattice import degenerate_family, drops
from dkn_engine.degeneracy.reference_facts import knows
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.seeds import generator
from dkn_engine.selection import select_neurons
from dkn_engine.types import Component, Fact, Selection

CONFIG = Config(
    filter=FilterConfig(
        n_random=0, n_regrouped=0, n_random_searches=0, n_unrelated=0, fill_reference=False
    )
)
BASELINES: tuple[Literal["masked", "zero"], ...] = ("masked", "zero")
POSITIONS: tuple[Positions, ...] = ("answer", "all")
GIVEN = "given"  # beside the names of baselines, of which it uses the last one's scores
TRUTH = "planted groups"  # beside the names of methods


@dataclass(frozen=True)
class Figure:
    """One figure of one model: a mean over its facts.

    Attributes:
        location: how the neurons were located; empty of the planting itself.
        method: that grouped them; empty of the planting and of the location.
        name, value: of the figure.
    """

    location: str
    method: str
    name: str
    value: float


def examine(planted: Planted, methods: Mapping[str, Method] = METHODS) -> list[Figure]:
    """All figures of a model."""
    cell = Cell(planted)
    found = list(planting_figures(planted))
    for location, of_fact in cell.located().items():
        found += _means(location, "", [cell.location_scores(one) for one in of_fact])
        if location == BASELINES[0]:
            continue
        for name in (TRUTH, *methods):
            judged = [cell.judge(one, methods.get(name), name in DRAWN) for one in of_fact]
            found += _means(location, name, judged)
    return found


def _means(location: str, method: str, of_fact: Sequence[Mapping[str, float]]) -> Iterator[Figure]:
    """Means over the facts of which a figure is defined; NaN if it is of none."""
    for name in of_fact[0] if of_fact else ():
        values = np.array([one[name] for one in of_fact])
        there = values[np.isfinite(values)]
        yield Figure(location, method, name, float(there.mean()) if len(there) else np.nan)


def planting_figures(planted: Planted) -> Iterator[Figure]:
    """The answer's probability with planted groups silenced, over facts and which groups.

    At the position that predicts the answer, as the engine suppresses by default, and at all
    positions; and with one neuron silenced in the only group that is on (in any, of a twin), and
    with all the neurons that belong to none of the fact's groups silenced.
    """
    groups = {fact.id: planted.groups(fact) for fact in planted.facts}
    ways = planted.ways

    def probability(
        off: Mapping[str, NDArray[np.int32]], positions: Positions = "answer"
    ) -> NDArray[np.float64]:
        return dkn.answer_probability(
            planted.model, planted.tokenizer, planted.facts, suppress=off, positions=positions
        )

    for positions, left in itertools.product(POSITIONS, range(ways, -1, -1)):
        silenced = itertools.combinations(range(ways), ways - left)
        p = np.stack([probability(_joined(groups, some), positions) for some in silenced])
        what = f"p, {left} of {ways} groups on, {positions} positions"
        yield Figure("", "", what, float(p.mean()))
        yield Figure("", "", f"{what}: lowest", float(p.min()))
        yield Figure("", "", f"{what}: highest", float(p.max()))
    first = {fact_id: some[0] for fact_id, some in groups.items()}
    rest = _joined(groups, range(1, ways) if planted.is_redundant else ())
    broken = [
        probability({k: np.concatenate([rest[k], v[[i]]]) for k, v in first.items()})
        for i in range(planted.training.members)
    ]
    yield Figure("", "", "p, one neuron of the last group off", float(np.mean(broken)))
    every = np.argwhere(np.ones_like(planted.owner)).astype(np.int32)
    others = {f.id: every[planted.labels(f, every) < 0] for f in planted.facts}
    yield Figure("", "", "p, all other neurons off", float(probability(others).mean()))


def _joined(
    groups: Mapping[str, Sequence[NDArray[np.int32]]], which: Sequence[int] | range
) -> dict[str, NDArray[np.int32]]:
    none = np.empty((0, 2), dtype=np.int32)
    return {k: np.concatenate([none, *(some[way] for way in which)]) for k, some in groups.items()}


class Cell:
    """One model with the facts it knows.

    Attributes:
        prompts: of all its facts.
        known: those that the model knows, with their places among the prompts.
    """

    def __init__(self, planted: Planted) -> None:
        self.planted, model = planted, planted.model
        facts = planted.facts
        sequences = [
            encode_sequence(model, planted.tokenizer, f.prompt, f.answer, config=FactsConfig())
            for f in facts
        ]
        self.prompts = Prompts(model, find_layout(model), sequences)
        known = knows(self.prompts, CONFIG.filter)
        self.known = [(i, fact) for i, fact in enumerate(facts) if known[i]]

    def located(self) -> dict[str, list[Located]]:
        """The known facts' neurons, by each baseline and as they are given."""
        planted = self.planted
        facts = [fact for _, fact in self.known]
        found, tables = {}, {}
        for baseline in BASELINES:
            config = AttributionConfig(baseline=baseline)
            table = dkn.attribute(planted.model, planted.tokenizer, facts, config).scores
            chosen = [select_neurons(one, SelectionConfig()) for one in table]
            found[baseline], tables[baseline] = self._of(chosen), table
        chosen = [
            self._given(fact, one) for fact, one in zip(facts, tables[BASELINES[-1]], strict=True)
        ]
        return found | {GIVEN: self._of(chosen)}

    def _of(self, chosen: Sequence[Selection]) -> list[Located]:
        return [Located(fact, i, one) for (i, fact), one in zip(self.known, chosen, strict=True)]

    def _given(self, fact: Fact, table: NDArray[np.float32]) -> Selection:
        """The planted neurons and as many others by chance, by descending score."""
        mine = np.concatenate(self.planted.groups(fact))
        every = np.argwhere(np.ones_like(table, dtype=bool)).astype(np.int32)
        others = every[self.planted.labels(fact, every) < 0]
        rng = generator(self.planted.training.seed, fact.id, "other neurons")
        drawn = others[rng.choice(len(others), len(mine), replace=False)]
        neurons = np.concatenate([mine, drawn])
        of_each = table[neurons[:, 0], neurons[:, 1]]
        order = np.argsort(-of_each, kind="stable")
        return Selection(neurons[order], of_each[order])

    def location_scores(self, one: Located) -> dict[str, float]:
        """Of one fact's located neurons."""
        labels = self.planted.labels(one.fact, one.selection.neurons)
        size = sum(map(len, self.planted.groups(one.fact)))
        return {
            "neurons": float(len(labels)),
            "neuron precision": scores.neuron_precision(labels),
            "neuron recall": scores.neuron_recall(labels, size),
        }

    def judge(self, one: Located, method: Method | None, drawn: bool) -> dict[str, float]:
        """Of one fact's groups; without a method, of the located neurons by planted group."""
        if method is None:
            return self._score(one, self._truth(one))
        seed = generator(self.planted.training.seed, one.fact.id, "methods")
        draws = [
            self._score(one, method(Question(self.prompts, one, CONFIG, int(s))))
            for s in seed.integers(1 << 32, size=DRAWS if drawn else 1)
        ]
        # Of random groups a figure is undefined in draws without a family.
        return {
            name: float(np.mean(there)) if (there := _finite(d[name] for d in draws)) else np.nan
            for name in draws[0]
        }

    def _truth(self, one: Located) -> tuple[Component, ...]:
        neurons = one.selection.neurons
        labels = self.planted.labels(one.fact, neurons)
        parts = [neurons[labels == way] for way in range(self.planted.ways)]
        return tuple(Component(part, 0.0, 0.0, 0.0) for part in parts if len(part))

    def _score(self, one: Located, candidates: Sequence[Component]) -> dict[str, float]:
        q, rule = len(candidates), CONFIG.filter
        sets = [c.neurons for c in candidates]
        lattice = lattice_of(self.prompts, one.sequence, sets, np.arange(1 << q))
        persistence = [float(np.nan_to_num(c.persistence)) for c in candidates]
        family = degenerate_family(lattice, persistence, rule.min_alone, rule.max_none)
        size = sum(map(len, self.planted.groups(one.fact)))
        ways = self.planted.ways
        every = [self.planted.labels(one.fact, some) for some in sets]
        groups = [every[i] for i in family]
        own = drops(lattice.restrict(family))
        return {
            "degenerate": float(len(family) >= 2),
            "groups": float(len(groups)) if family else np.nan,
            "group precision": scores.group_precision(groups),
            "group recall": scores.group_recall(groups, ways),
            "purity": scores.mean_purity(groups),
            "exact": float(scores.is_exact(groups, ways)),
            "coverage": scores.coverage(groups, size),
            "full drop": own.full_drop,
            "redundancy": own.redundancy,
            "candidates": float(q),
            "candidate purity": scores.mean_purity(every),
            "candidate recall": scores.group_recall(every, ways),
        }


def _finite(values: Iterator[float]) -> list[float]:
    return [v for v in values if np.isfinite(v)]
