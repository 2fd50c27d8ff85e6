"""Ways to group a fact's neurons, by name; a further one is a line in ``METHODS``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dkn_engine.config import Config, TopologyConfig
from dkn_engine.degeneracy.choices import Located
from dkn_engine.degeneracy.component_choice import choose_components
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.models.connections import connection_rows
from dkn_engine.topology import other_clusterers
from dkn_engine.types import Component

DRAWS = 5


@dataclass(frozen=True, eq=False)
class Question:
    """Whose neurons are to be grouped.

    Attributes:
        prompts: hold the fact's.
        located: the fact and its neurons.
        config: its filter and seed hold for every method.
        seed: of methods that draw.
    """

    prompts: Prompts
    located: Located
    config: Config
    seed: int


Method = Callable[[Question], tuple[Component, ...]]


def engine(**topology: Any) -> Method:
    """What the engine itself does with these settings of its topology."""

    def candidates(question: Question) -> tuple[Component, ...]:
        config = dataclasses.replace(question.config, topology=TopologyConfig(**topology))
        (choice,) = choose_components(question.prompts, [question.located], config)
        if isinstance(choice, Exception):
            raise choice
        return choice.components[: config.topology.max_candidates]

    return candidates


def clusterer(name: str) -> Method:
    """A clusterer of ``analyze clusterers``, with its default options."""

    def candidates(question: Question) -> tuple[Component, ...]:
        prompts, one = question.prompts, question.located
        neurons, rule = one.selection.neurons, question.config.filter
        located = other_clusterers.Located(
            neurons,
            *connection_rows(prompts.layout, neurons, TopologyConfig()),
            seed=question.seed,
            probability=lambda sets: prompts.probabilities(
                [suppress(some) for some in sets], [one.sequence]
            )[:, 0],
            min_alone=rule.min_alone,
            max_none=rule.max_none,
        )
        return other_clusterers.cluster(name, located)

    return candidates


_RESIDUAL = {"connections": "residual", "fold_norm": True, "by_activation": True}
_RELEASED = {
    f.name: getattr(Config.released().topology, f.name) for f in dataclasses.fields(TopologyConfig)
}
METHODS: Mapping[str, Method] = {
    "NTC": engine(),
    "NTC, whole tree": engine(select="tree"),
    "NTC, whole tree, any layers": engine(select="tree", **_RESIDUAL),
    "NTC, whole tree, influence": engine(select="tree", connections="influence"),
    "covering groups": engine(clustering="covering"),
    "released": engine(**_RELEASED),
    "DBSCAN": clusterer("dbscan"),
    "HDBSCAN": clusterer("hdbscan"),
    "hierarchical": clusterer("hierarchical"),
    "k-means": clusterer("kmeans"),
    "AMIG pairs": clusterer("pairs"),
    "random groups": clusterer("random"),
}
DRAWN = frozenset({"random groups"})  # a mean over ``DRAWS`` seeds
