"""Families of a merge tree's nodes against trying all of them, and end to end."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.config import Config, FilterConfig, SelectionConfig, TopologyConfig
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.controls import lattice_of
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import nothing, suppress
from dkn_engine.degeneracy.lattice import drops
from dkn_engine.degeneracy.tree_families import Chosen, tree_family
from dkn_engine.errors import FactError
from dkn_engine.models.layout import find_layout
from dkn_engine.types import Component
from tests.models.test_guest import assert_unchanged, state
from tests.support.brute_force_edits import answer_probabilities
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.tiny import N_LAYERS, WIDTH, sequences, tiny
from tests.support.words import words_tokenizer

TREE = TopologyConfig(select="tree", max_candidates=4, max_families=10_000)


def random_tree(seed: int, n_leaves: int = 6) -> list[Component]:
    """Nodes of a random binary tree over random neurons, most persistent first."""
    random = np.random.default_rng(seed)
    flat = random.choice(N_LAYERS * WIDTH, 2 * n_leaves, replace=False)
    neurons = np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)
    alive = [neurons[2 * i : 2 * i + 2] for i in range(n_leaves)]
    nodes = list(alive)
    while len(alive) > 1:
        a, b = sorted(random.choice(len(alive), 2, replace=False))
        nodes.append(np.concatenate([alive.pop(b), alive.pop(a)]))
        alive.append(nodes[-1])
    lives = np.sort(random.choice(8, len(nodes)) / 4)[::-1]  # some as long as others
    return [Component(n, 0.0, life, life) for n, life in zip(nodes, lives.tolist(), strict=True)]


def prompts_of(name: str) -> Prompts:
    model = tiny(name)
    return Prompts(model, find_layout(model), sequences(), warn=False)


def by_trying_all(
    name: str, model: Any, b: int, nodes: Sequence[Component], rule: FilterConfig, means: Any
) -> tuple[tuple[int, ...], bool]:
    """The preferred family of up to four nodes, each suppression a row of a plain forward."""
    sets = [frozenset(map(tuple, node.neurons.tolist())) for node in nodes]

    def measured(families: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        off = [sorted(itertools.chain(*(sets[i] for i in family))) for family in families]
        edits = [suppress(np.array(some), means) if some else nothing() for some in off]
        left = answer_probabilities(name, model, sequences()[b], edits) if edits else []
        return dict(zip(families, left, strict=True))

    def parts(family: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [tuple(j for j in family if j != i) for i in family]

    p = measured([()])
    grows: dict[int, list[tuple[int, ...]]] = {0: [()]}
    passing, closest = [], []
    for size in range(1, 5):
        families = [
            family
            for family in itertools.combinations(range(len(nodes)), size)
            if not any(sets[i] & sets[j] for i, j in itertools.combinations(family, 2))
            and all(part in grows[size - 1] for part in parts(family))
        ]
        p |= measured(families)
        grows[size] = [family for family in families if p[family] >= rule.min_alone * p[()]]
        for family in families if size > 1 else []:
            weakest = min(p[part] for part in parts(family))
            closest.append((p[family] / weakest, family))
            if p[family] <= rule.max_none * weakest:
                total = math.fsum(nodes[i].persistence for i in family)
                passing.append(((size, total, *(-i for i in family)), family))
    if passing:
        return max(passing)[1], True
    return (min(closest)[1] if closest else ()), False


def chosen(found: Any) -> Chosen:
    assert isinstance(found, Chosen)
    return found


@pytest.mark.parametrize(
    ("min_alone", "max_none"), [(0.8, 0.999), (0.9, 0.97), (0.95, 0.5), (0.999, 1.0)]
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_family_is_the_one_found_by_trying_all(
    name: str, min_alone: float, max_none: float
) -> None:
    rule = FilterConfig(min_alone=min_alone, max_none=max_none)
    prompts = prompts_of(name)
    before = state(prompts.model)
    config = Config(topology=TREE, filter=rule)
    means = np.random.default_rng(1).standard_normal((N_LAYERS, WIDTH)) if max_none < 0.6 else None
    trees = [random_tree(b) for b in range(len(sequences()))]
    found = together(
        [tree_family(prompts, b, nodes, config, means) for b, nodes in enumerate(trees)]
    )
    for b, (nodes, one) in enumerate(zip(trees, found, strict=True)):
        expected = by_trying_all(name, prompts.model, b, nodes, rule, means)
        assert (chosen(one).members, chosen(one).passes) == expected
        if chosen(one).members:
            sets = [nodes[i].neurons for i in chosen(one).members]
            own = lattice_of(prompts, b, sets, np.arange(1 << len(sets)), means)
            assert chosen(one).excess == pytest.approx(drops(own).excess, abs=1e-10)
        (alone,) = together([tree_family(prompts, b, nodes, config, means)])
        assert chosen(alone).members == chosen(one).members
        assert chosen(alone).n_rows == chosen(one).n_rows
    assert_unchanged(before, state(prompts.model))


def test_the_cost_is_bounded_by_the_families_of_each_size() -> None:
    nodes, prompts = random_tree(0, n_leaves=12), prompts_of("gpt2")
    rule = FilterConfig(min_alone=0.0, max_none=0.0)
    for most in (1, 40):
        topology = dataclasses.replace(TREE, max_families=most)
        config = Config(topology=topology, filter=rule)
        (found,) = together([tree_family(prompts, 0, nodes, config)])
        assert len(nodes) + most <= chosen(found).n_rows <= len(nodes) + 3 * most
        assert not chosen(found).passes
    assert chosen(found).n_rows > len(nodes) + most  # and families of three


def test_of_too_many_families_the_costliest_are_measured() -> None:
    nodes, prompts = random_tree(3), prompts_of("gpt2")
    topology = dataclasses.replace(TREE, max_families=1, max_candidates=2)
    rule = FilterConfig(min_alone=0.0, max_none=0.0)
    (found,) = together([tree_family(prompts, 0, nodes, Config(topology=topology, filter=rule))])
    p = prompts.probabilities([suppress(node.neurons) for node in nodes], [0])[:, 0]
    sets = [set(map(tuple, node.neurons.tolist())) for node in nodes]
    pairs = [
        (p[i] + p[j], (i, j))
        for i, j in itertools.combinations(range(len(nodes)), 2)
        if not sets[i] & sets[j]
    ]
    assert chosen(found).members == min(pairs)[1]


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_nodes_are_no_family(n: int) -> None:
    config = Config(topology=TREE)
    (found,) = together([tree_family(prompts_of("gpt2"), 0, random_tree(0)[:n], config)])
    one = chosen(found)
    assert (one.members, one.passes, one.n_rows) == ((), False, n)
    assert math.isnan(one.excess)


PLANTED = Config(
    selection=SelectionConfig(threshold=0.4),
    topology=TopologyConfig(select="tree", end="largest_merge", end_value=None, allow_root=False),
    filter=FilterConfig(min_alone=0.5, max_none=0.5, fill_reference=False),
)


@pytest.mark.parametrize("connections", ["adjacent", "residual", "influence"])
def test_planted_sets_are_chosen_out_of_the_tree(connections: Any) -> None:
    topology = dataclasses.replace(PLANTED.topology, connections=connections)
    config = dataclasses.replace(PLANTED, topology=topology)
    facts = [EITHER.fact, BOTH.fact]
    either, both = dkn.find_dkns(planted_model(), words_tokenizer(), facts, config)
    assert either.is_degenerate
    assert either.dkn == (0, 1, 2)
    assert either.reason == ""
    found = {frozenset(map(tuple, c.neurons.tolist())) for c in either.components}
    assert found == set(EITHER.sets)
    assert either.redundancy > 10
    assert [c.persistence for c in either.components] == sorted(
        (c.persistence for c in either.components), reverse=True
    )
    assert not both.is_degenerate
    assert both.status == "ok"
    assert both.reason.startswith("no family of the tree's ")


def test_an_answer_that_is_too_long_for_an_edited_model_is_an_error_of_its_fact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the lattice says so: other facts go on."""
    model = planted_model()
    answers = Prompts.with_objective

    def failing(self: Prompts, asked: Any, **options: Any) -> Any:
        if any(0 in one.sequences and len(one.edits) > 1 for one in asked):
            raise FactError("fact 'either': too long")
        return answers(self, asked, **options)

    monkeypatch.setattr(Prompts, "with_objective", failing)
    monkeypatch.setattr(Prompts, "holds_free", lambda *_: True)
    facts = [EITHER.fact, BOTH.fact]
    either, both = dkn.find_dkns(model, words_tokenizer(), facts, PLANTED)
    assert (either.status, either.reason) == ("error", "fact 'either': too long")
    assert both.status == "ok"


def test_the_released_filter_chooses_from_no_tree() -> None:
    with pytest.raises(dkn.UserError, match=r"filter.method must be 'degenerate' with"):
        Config(topology=TREE, filter=FilterConfig(method="released"))
