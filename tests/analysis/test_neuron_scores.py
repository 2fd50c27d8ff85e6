"""Scores of sets of neurons, and what a relation's other facts teach."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dkn_engine.analysis.experiments.fact_check.neuron_scores import (
    _chunk_order,
    deal,
    golden_sets,
    mean_attributions,
    practical_sets,
)
from dkn_engine.analysis.neuron_groups import NeuronGroups
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from dkn_engine.types import Fact, FactResult
from tests.support.tiny import MASK_ID, sequence, tiny

WIDTH = 40
NONE = np.empty((0, 2), dtype=np.int32)


def neurons(*indices: int) -> np.ndarray:
    return np.array([[1, i] for i in indices], dtype=np.int32).reshape(-1, 2)


def group(fact: Fact, d: np.ndarray, n: np.ndarray) -> NeuronGroups:
    return NeuronGroups(fact, FactResult(fact.id, "ok"), d, n, ())


def facts_of(*sizes: int) -> list[Fact]:
    """Facts of relations of the given sizes."""
    return [
        Fact(f"r{r}-{i}", f"p{i}", "a", relation=f"r{r}")
        for r, size in enumerate(sizes)
        for i in range(size)
    ]


def test_means_are_those_of_the_dense_scores() -> None:
    model = tiny("llama")
    layout, config = find_layout(model), AttributionConfig(tolerance=1e-2)
    # More than a chunk, in an order that is not that of their lengths.
    some = [sequence(2 + i % 5, 1 + i % 3, seed=i) for i in range(11)]
    random = np.random.default_rng(0)
    sets = [
        [
            np.stack([random.integers(3, size=k), random.choice(WIDTH, k, False)], 1).astype(int)
            for k in (1, 7, 0)
        ][: 1 + i % 3]
        for i in range(11)
    ]
    done: list[int] = []
    means, probability = mean_attributions(
        model, layout, some, sets, config, MASK_ID, progress=done.append
    )
    assert done == [8, 11]
    for i, one in enumerate(some):
        found = attribute_chunk(model, layout, [one], config, mask_id=MASK_ID)
        assert probability[i] == pytest.approx(found.probability[0], rel=1e-9)
        expected = [found.scores[0][s[:, 0], s[:, 1]].mean() if len(s) else np.nan for s in sets[i]]
        # Chunks refine alike, up to what floating point leaves open.
        np.testing.assert_allclose(means[i], expected, rtol=1e-6, atol=1e-12)


def test_what_is_stated_of_one_prompt_is_in_one_chunk() -> None:
    """Though a shorter answer's statement has the length of others; the longest come first."""
    prompts = [sequence(n, 1, seed=i) for i, n in enumerate((5, 7, 5, 6, 4, 5))]
    answers = ((9,), (4, 5, 6))
    some = [
        AnswerSequence(one.ids + answer[:-1], one.n_prompt, answer)
        for answer in answers
        for one in prompts
    ]
    order = _chunk_order(some)
    assert sorted(order) == list(range(12))
    assert [i % 6 for i in order] == [1, 1, 3, 3, 0, 0, 2, 2, 5, 5, 4, 4]


@pytest.mark.parametrize("n_folds", [2, 5])
def test_relations_are_dealt_evenly(n_folds: int) -> None:
    facts = facts_of(1, 4, 13, 4, 2)
    folds = deal(facts, n_folds, seed=0)
    for r in range(5):
        mine = Counter(folds[f.id] for f in facts if f.relation == f"r{r}")
        assert max(mine.values()) - min(mine[k] for k in range(n_folds)) <= 1
    assert folds == deal(facts, n_folds, seed=0)
    assert folds != deal(facts, n_folds, seed=1)
    # A relation's folds do not depend on the others.
    some = [f for f in facts if f.relation == "r2"]
    assert deal(some, n_folds, 0) == {f.id: folds[f.id] for f in some}


def test_years_of_one_topic_are_dealt_together() -> None:
    facts = [
        Fact(f"{player}-{year}", f"{player} plays for", "a", relation="team", date=year)
        for player in ("Rossi", "Stoner", "Bayliss", "Biaggi")
        for year in ("2010", "2011", "2012")
    ]
    folds = deal(facts, 2, seed=0)
    by_player = {f.prompt: {folds[g.id] for g in facts if g.prompt == f.prompt} for f in facts}
    assert all(len(some) == 1 for some in by_player.values())
    assert Counter(next(iter(some)) for some in by_player.values()) == {0: 2, 1: 2}


def test_golden_sets_are_the_facts_own() -> None:
    fact = facts_of(1)[0]
    sets = golden_sets(group(fact, neurons(1, 2), neurons(1, 2, 3)))
    assert [s.tolist() for s in sets["D"]] == [neurons(1, 2).tolist()]
    assert [s.tolist() for s in sets["N"]] == [neurons(1, 2, 3).tolist()]
    assert golden_sets(group(fact, NONE, neurons(1)))["D"] == []


FACTS = facts_of(4, 1)
FOLDS = {"r0-0": 0, "r0-1": 0, "r0-2": 1, "r0-3": 2, "r1-0": 0}
OWN = {
    "r0-0": (neurons(0), neurons(0, 1)),
    "r0-1": (neurons(2), neurons(2, 3)),
    "r0-2": (neurons(4, 5), neurons(4, 5, 6)),
    "r0-3": (NONE, neurons(5, 7)),
    "r1-0": (neurons(30), neurons(30, 31)),
}
GROUPS = {f.id: group(f, *OWN[f.id]) for f in FACTS}


def taught(share: float | None = None, groups: dict[str, NeuronGroups] = GROUPS, seed: int = 0):  # type: ignore[no-untyped-def]
    return practical_sets(FACTS, FOLDS, groups, share, WIDTH, 3, seed)


def test_a_facts_neurons_are_those_of_the_other_folds_of_its_relation() -> None:
    sets = taught()
    assert [s.tolist() for s in sets["r0-0"]["D"]] == [neurons(4, 5).tolist()]
    assert sets["r0-0"]["N"][0].tolist() == neurons(4, 5, 6, 7).tolist()
    assert sets["r0-2"]["D"][0].tolist() == neurons(0, 2).tolist()
    assert sets["r0-3"]["N"][0].tolist() == neurons(0, 1, 2, 3, 4, 5, 6).tolist()
    # Nobody teaches the only fact of a relation.
    assert sets["r1-0"]["D"] == sets["r1-0"]["Rnd"] == []
    assert sets["r1-0"]["N"][0].shape == (0, 2)


@pytest.mark.parametrize("fact_id", OWN)
def test_a_facts_own_fold_teaches_it_nothing(fact_id: str) -> None:
    before = taught()[fact_id]
    mine = {f.id: group(f, neurons(20), neurons(20, 21)) for f in FACTS}
    other = {i: mine[i] if FOLDS[i] == FOLDS[fact_id] else g for i, g in GROUPS.items()}
    for name, some in taught(groups=other)[fact_id].items():
        assert [s.tolist() for s in some] == [s.tolist() for s in before[name]]


def test_a_share_keeps_what_several_facts_have() -> None:
    shared = dict(GROUPS)
    shared["r0-3"] = group(FACTS[3], neurons(5, 9), neurons(5, 9))
    sets = taught(share=0.5, groups=shared)
    assert sets["r0-0"]["D"][0].tolist() == neurons(5).tolist()  # of two facts with a DKN
    assert sets["r0-0"]["N"][0].tolist() == neurons(5).tolist()
    # Two of three have none of them.
    assert sets["r0-3"]["D"] == []
    assert len(taught(share=0.0, groups=shared)["r0-0"]["N"][0]) == 4


def test_random_neurons_are_matched_and_others() -> None:
    sets = taught()["r0-0"]
    assert len(sets["Rnd"]) == 3
    for drawn in sets["Rnd"]:
        assert drawn[:, 0].tolist() == [1, 1]
        assert not set(drawn[:, 1].tolist()) & {4, 5, 6, 7}
    again, other = taught()["r0-0"], taught(seed=1)["r0-0"]
    np.testing.assert_array_equal(sets["Rnd"], again["Rnd"])
    assert not np.array_equal(sets["Rnd"], other["Rnd"])


def test_more_draws_of_random_neurons_begin_with_the_same_ones() -> None:
    few, more = (practical_sets(FACTS, FOLDS, GROUPS, None, WIDTH, n, 0) for n in (2, 5))
    for fact_id, sets in few.items():
        assert len(more[fact_id]["Rnd"]) in (0, 5)
        for one, other in zip(sets["Rnd"], more[fact_id]["Rnd"], strict=False):
            np.testing.assert_array_equal(one, other)
        assert len(sets["Rnd"]) == (2 if sets["D"] else 0)


def test_facts_without_a_relation_are_taught_nothing() -> None:
    alone = Fact("x", "p", "a")
    assert practical_sets([alone], {"x": 0}, {}, None, WIDTH, 3, 0) == {}
