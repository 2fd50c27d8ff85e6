"""The benchmark of graphs: its permutation of labels, its figures, its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from benchmarks.science import graphs
from benchmarks.science.graphs import Outcome, beyond_chance, difference_row, permuted, row
from dkn_engine.types import Component
from tests.support.planted import BOTH, EITHER, planted_model
from tests.support.words import words_tokenizer

NEURONS = np.array([[2, 9], [0, 4], [2, 1], [0, 7], [1, 3], [2, 5], [0, 0]], dtype=np.int32)


def nested() -> list[Component]:
    small = NEURONS[[1, 4]]
    return [Component(n, 1.0, 3.0, 2.0) for n in (small, NEURONS[[0, 2]], NEURONS[[1, 3, 4, 5]])]


def test_permuted_labels_keep_sizes_layers_and_nesting() -> None:
    components = nested()
    seen = set()
    for seed in range(40):
        found = permuted(components, NEURONS, np.random.default_rng(seed))
        for before, after in zip(components, found, strict=True):
            assert sorted(after.neurons[:, 0]) == sorted(before.neurons[:, 0])
            assert {*map(tuple, after.neurons)} <= {*map(tuple, NEURONS)}
            assert (after.birth, after.death) == (before.birth, before.death)
        small, other, large = ({*map(tuple, c.neurons.tolist())} for c in found)
        assert small < large
        assert not small & other
        seen.add(frozenset(other))
    # Two of the three of layer 2.
    assert len(seen) == 3


def outcomes(own: bool, other: bool) -> dict[Any, Outcome]:
    option = ("adjacent", "leaf")
    return {
        (option, "own"): Outcome(5, 32, 2 * own, 0.5, 1.5),
        (option, "permuted"): Outcome(5, 32, 2 * other),
    }


def test_shares_beyond_chance_are_paired_over_facts() -> None:
    found = [outcomes(True, False)] * 3 + [outcomes(True, True)] * 3 + [outcomes(False, False)] * 2
    option = ("adjacent", "leaf")
    assert beyond_chance(found, option).mean == pytest.approx(3 / 8)
    line = difference_row("tuning", option, found)
    assert (line["n"], line["degenerate"], line["labels"]) == (8, 0.375, "own - permuted")
    assert list(line) == list(row("tuning", option, "own", [f[option, "own"] for f in found]))


def test_a_row_counts_families_and_those_that_hold() -> None:
    found = [
        Outcome(4, 16, 2, 0.6, 1.5, 0.30, 0.6, 1.4),
        Outcome(6, 64, 3, 0.5, 1.3, 0.40, 0.6, 1.2),
        Outcome(8, 256, 2, 0.7, 1.2),
        Outcome(9, 512, 0),
    ]
    line = row("other", ("any", "tree"), "own", found)
    expected = {"n": 4, "candidates": 7.0, "rows": 160.0, "degenerate": 3, "judged": 2, "holds": 1}
    assert {name: line[name] for name in expected} == expected
    assert (line["full_drop"], line["held_out_redundancy"]) == (0.6, 1.3)


def test_a_planted_family_is_found_in_each_graph() -> None:
    model, tokenizer = planted_model(), words_tokenizer()
    options = [(graph, select) for graph in ("adjacent", "influence") for select in graphs.SELECT]
    selection = dkn.SelectionConfig(threshold=0.4)
    either = graphs.measured(model, tokenizer, EITHER.fact, options, selection)
    both = graphs.measured(model, tokenizer, BOTH.fact, options, selection)
    for option in options:
        assert either[option, "own"].members == 3
        assert either[option, "own"].full_drop > 0.99
        assert both[option, "own"].members == 0
        assert np.isnan(either[option, "own"].held_out_full_drop)
