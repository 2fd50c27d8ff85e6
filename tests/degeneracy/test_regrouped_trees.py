"""The null of families chosen from a tree: permuted labels, and the choice repeated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.config import Config, FilterConfig, TopologyConfig
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.null_draws import Null
from dkn_engine.degeneracy.regrouped_trees import (
    REGROUPED_TREE,
    regrouped_tree_null,
    relabelled,
)
from dkn_engine.degeneracy.tree_families import Chosen, tree_family
from dkn_engine.models.layout import find_layout
from dkn_engine.types import Component
from tests.degeneracy.test_tree_families import PLANTED, TREE, random_tree
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.tiny import sequences, tiny
from tests.support.words import words_tokenizer

LOCATED = np.array([[2, 9], [0, 4], [2, 1], [0, 7], [1, 3], [2, 5], [0, 0]], dtype=np.int32)


def test_permuted_labels_keep_sizes_layers_and_nesting() -> None:
    members = (LOCATED[[1, 4]], LOCATED[[0, 2]], LOCATED[[1, 3, 4, 5]])
    nodes = [Component(n, 1.0, 3.0, 2.0) for n in members]
    seen: dict[frozenset[tuple[int, int]], int] = {}
    for seed in range(300):
        found = relabelled(nodes, LOCATED, np.random.default_rng(seed))
        for before, after in zip(nodes, found, strict=True):
            assert sorted(after.neurons[:, 0]) == sorted(before.neurons[:, 0])
            assert {*map(tuple, after.neurons)} <= {*map(tuple, LOCATED)}
            assert (after.birth, after.death) == (before.birth, before.death)
        small, other, large = ({*map(tuple, c.neurons.tolist())} for c in found)
        assert small < large
        assert not small & other
        seen[frozenset(other)] = seen.get(frozenset(other), 0) + 1
    # Two of the three of layer 2, each pair in a third of the draws: within 5 deviations of 8.2.
    assert len(seen) == 3
    assert all(abs(n - 100) < 41 for n in seen.values())


@pytest.mark.parametrize("precision", [0.0, 0.02])
def test_every_draw_is_a_choice_of_its_own(precision: float) -> None:
    """With a precision, where no family was chosen a quarter of the draws are counted."""
    model = tiny("gpt2")
    prompts = Prompts(model, find_layout(model), sequences(), warn=False)
    rule = FilterConfig(min_alone=0.9, max_none=0.97, n_regrouped=6, control_precision=precision)
    config = Config(topology=TREE, filter=rule)
    nodes = random_tree(0)
    located = np.concatenate([node.neurons for node in nodes if len(node.neurons) == 2])
    own = together([tree_family(prompts, 0, nodes, config)])[0]
    assert isinstance(own, Chosen)
    rng = np.random.default_rng(5)
    found = together([regrouped_tree_null(prompts, 0, nodes, located, own, config, rng)])[0]
    assert isinstance(found, Null)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(6):
        one = together([tree_family(prompts, 0, relabelled(nodes, located, rng), config)])[0]
        assert isinstance(one, Chosen)
        drawn.append(one)
    passing = [one for one in drawn if one.passes]
    better = [one for one in passing if not own.passes or one.excess >= own.excess]
    better += [one for one in drawn if not (one.passes or own.passes or one.excess < own.excess)]
    expected = Null(REGROUPED_TREE, 6, len(passing), (1 + len(better)) / 7)
    assert not own.passes
    if precision:
        expected = Null(REGROUPED_TREE, 2, sum(one.passes for one in drawn[:2]), 1.0)
    assert found == expected


def test_the_null_of_a_run_repeats_the_choice() -> None:
    """For each fact, and the same in whatever chunks."""
    rule = dataclasses.replace(PLANTED.filter, n_regrouped=19)
    config = dataclasses.replace(PLANTED, filter=rule)
    facts = [EITHER.fact, BOTH.fact]
    either, both = dkn.find_dkns(planted_model(), words_tokenizer(), facts, config)
    assert either.null == both.null == REGROUPED_TREE
    assert (either.null_draws, both.null_draws) == (19, 5)
    assert either.is_degenerate
    assert not both.is_degenerate
    assert both.null_passing == 0
    again = dataclasses.replace(config, facts_per_chunk=1)
    for one, other in zip(
        (either, both), dkn.find_dkns(planted_model(), words_tokenizer(), facts, again), strict=True
    ):
        assert (one.null_passing, one.null_p) == (other.null_passing, other.null_p)


def test_no_draws_are_no_null() -> None:
    config = Config(
        topology=TopologyConfig(select="tree", end="largest_merge", end_value=None),
        filter=dataclasses.replace(PLANTED.filter, n_regrouped=0),
        selection=PLANTED.selection,
    )
    (found,) = dkn.find_dkns(planted_model(), words_tokenizer(), [EITHER.fact], config)
    assert found.null is None
    assert found.null_draws is None
