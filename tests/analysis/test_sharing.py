"""Neurons that facts share, against Python sets and against the share that chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dkn_engine.analysis.experiments.sharing.experiment import (
    OTHERS,
    WITH,
    component_sharing,
    sharing,
)
from dkn_engine.errors import UserError
from dkn_engine.neurons import random_sets
from dkn_engine.types import Component, Fact, FactResult
from tests.support.tiny import WIDTH, tiny
from tests.support.words import words_tokenizer

N_LAYERS = 3
Neuron = tuple[int, int]


def result_of(fact: Fact, sets: Sequence[set[Neuron]], rest: set[Neuron], dkn: bool) -> FactResult:
    """A known fact with these candidates, the first two of them its DKN."""
    components = tuple(Component(array(s), 0.0, 1.0, 1.0) for s in sets)
    every = array(set().union(*sets, rest))
    return FactResult(
        fact.id, "ok", neurons=every, components=components, dkn=(0, 1) if dkn else ()
    )


def array(neurons: set[Neuron]) -> np.ndarray:
    return np.array(sorted(neurons), dtype=np.int32).reshape(-1, 2)


def drawn(seed: int, n_facts: int = 9, width: int = 12) -> tuple[list[Fact], list[FactResult]]:
    """Facts of two relations and of none, with neurons from few enough to overlap."""
    rng = np.random.default_rng(seed)
    facts, results = [], []
    for i in range(n_facts):
        relation = ("r", "s", None)[i % 3]
        fact = Fact(f"f{i}", f"p{i}", f"a{rng.integers(3)}", relation=relation)
        every = [(l, j) for l in range(N_LAYERS) for j in range(width)]
        chosen = [every[j] for j in rng.permutation(len(every))[:14]]
        sets = [set(chosen[:3]), set(chosen[3:5]), set(chosen[5:9])]
        facts.append(fact)
        results.append(result_of(fact, sets, set(chosen[9:]), dkn=bool(i % 2)))
    return facts, results


def others_of(facts: Sequence[Fact], i: int, which: str) -> list[int]:
    own = facts[i]
    found = []
    for j, f in enumerate(facts):
        same = own.relation is not None and f.relation == own.relation
        wanted = {
            "same relation": same,
            "same relation, other answer": same and f.answer != own.answer,
            "other relations": not same,
        }
        if j != i and wanted[which]:
            found.append(j)
    return found


def neurons_of(result: FactResult, kind: str) -> set[Neuron]:
    arrays = [result.neurons]
    if kind == "D":
        arrays = [result.components[c].neurons for c in result.dkn]
    return {(int(l), int(j)) for a in arrays for l, j in a}


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_those_of_sets(seed: int) -> None:
    facts, results = drawn(seed)
    found = {
        (s.fact_id, s.component, s.kind, s.others): s for s in component_sharing(facts, results, 12)
    }
    assert len(found) == len(facts) * 4 * len(WITH) * len(OTHERS)
    for i, result in enumerate(results):
        sets: dict[int | None, Any] = {None: result.neurons}
        sets |= {c: x.neurons for c, x in enumerate(result.components)}
        for component, own in sets.items():
            mine = {(int(l), int(j)) for l, j in own}
            for kind in WITH:
                for which in OTHERS:
                    theirs = [neurons_of(results[j], kind) for j in others_of(facts, i, which)]
                    theirs = [t for t in theirs if t]
                    s = found[result.fact_id, component, kind, which]
                    assert (s.n_neurons, s.n_others) == (len(mine), len(theirs))
                    assert s.in_dkn == (component in result.dkn)
                    if not theirs:
                        assert np.isnan(s.shared)
                        assert np.isnan(s.overlap)
                        continue
                    assert s.shared == pytest.approx(len(mine & set().union(*theirs)) / len(mine))
                    each = [len(mine & t) / len(mine) for t in theirs]
                    assert s.overlap == pytest.approx(np.mean(each))


def test_random_sets_share_what_chance_gives() -> None:
    """A layer's free neurons are drawn evenly, so the expected share is that of their pool."""
    facts, results = drawn(0)
    n_draws = 800
    found = component_sharing(facts, results, 12, n_random=n_draws)
    checked = 0
    for s in found:
        if s.component is None or not s.n_others:
            continue
        i = int(s.fact_id[1:])
        theirs = [neurons_of(results[j], s.kind) for j in others_of(facts, i, s.others)]
        own = neurons_of(results[i], "N")
        component = results[i].components[s.component].neurons
        shares = []
        for layer in component[:, 0].tolist():
            free = {(layer, j) for j in range(12)} - own
            shares.append(len(free & set().union(*theirs)) / len(free))
        # A draw's mean over the component has a standard deviation of at most 0.5; five of the
        # mean's over the draws.
        assert abs(s.random_shared - np.mean(shares)) < 5 * 0.5 / n_draws**0.5
        checked += 1
    assert checked > 50


def test_a_table_of_shared_and_of_private_neurons() -> None:
    """Facts of a relation share their first component and nothing else."""
    facts, results = [], []
    for i in range(16):
        relation = "rs"[i % 2]
        common = {(i % 2, 1), (i % 2, 2)}
        own = {(2, 10 + 2 * i), (2, 11 + 2 * i)}
        facts.append(Fact(f"f{i}", "p", f"a{i}", relation=relation))
        results.append(result_of(facts[-1], [common, own], set(), dkn=True))
    table = sharing(tiny("llama", intermediate_size=200), words_tokenizer(), facts, results, seed=3)
    same = {"matched": "D", "with": "N", "others": "same relation"}
    other = {**same, "others": "other relations"}
    for figure in ("shared", "overlap"):
        assert table.row(figure, "D", **same).mean == 0.5  # all of one, nothing of the other
        assert table.row(figure, "N", **same).mean == 0.5
        assert table.row(figure, "D", **other).mean == 0
        assert table.row(figure, "D", **same).n == 16
    assert table.row("shared", "Rnd", **same).control
    assert table.row("shared", "Rnd", **same).mean < 0.1
    assert table.comparison("shared", "D", "Rnd", **same).verdict == "higher"
    assert table.comparison("shared", "D", "N", **same).verdict == "no difference found"
    assert table.comparison("shared", "D", "Rnd", **other).verdict != "higher"
    assert {c.figure for c in table.comparisons} == {"shared"}
    assert (table.seed, table.settings["n_random"]) == (3, 20)


def test_facts_that_are_not_known_count_nowhere() -> None:
    facts, results = drawn(1)
    before = component_sharing(facts, results, 12)
    facts.append(Fact("unknown", "p", "a", relation="r"))
    results.append(FactResult("unknown", "not_known", neurons=results[0].neurons))
    assert repr(component_sharing(facts, results, 12)) == repr(before)


def test_draws_depend_on_the_seed_and_the_fact_alone() -> None:
    facts, results = drawn(2)

    def found(order: Sequence[int], seed: int) -> set[str]:
        chosen = [facts[i] for i in order], [results[i] for i in order]
        return {repr(s) for s in component_sharing(*chosen, 12, seed=seed)}

    forward, back = range(len(facts)), range(len(facts) - 1, -1, -1)
    assert found(forward, 5) == found(back, 5)
    assert found(forward, 5) != found(forward, 6)


def test_more_draws_begin_with_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, results = drawn(2, n_facts=1)
    asked: list[np.ndarray] = []

    def remember(*given: Any) -> list[np.ndarray]:
        found = random_sets(*given)
        asked.append(np.concatenate(found))
        return found

    monkeypatch.setattr("dkn_engine.analysis.experiments.sharing.experiment.random_sets", remember)
    for n_random in (20, 23):
        component_sharing(facts, results, 12, n_random=n_random)
    assert len(asked) == 43
    np.testing.assert_array_equal(asked[:20], asked[20:40])


def test_one_fact_and_none() -> None:
    facts, results = drawn(0, n_facts=1)
    assert all(np.isnan(s.shared) for s in component_sharing(facts, results, 12))
    assert component_sharing([], [], 12) == []


def test_too_few_draws_and_foreign_results_are_refused() -> None:
    facts, results = drawn(0)
    with pytest.raises(UserError, match="n_random must be at least 20; got 3"):
        component_sharing(facts, results, WIDTH, n_random=3)
    with pytest.raises(UserError, match="results must be those of the facts"):
        component_sharing(facts, results[::-1], WIDTH)


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    component_sharing(*drawn(0), 12, progress=True)
    assert "9/9 fact" in capsys.readouterr().err
