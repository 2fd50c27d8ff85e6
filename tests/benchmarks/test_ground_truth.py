"""Planted models: what training silences, scores against plain counting, a cell end to end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ground_truth import scores
from benchmarks.ground_truth.examine import TRUTH, Figure, examine
from benchmarks.ground_truth.made_up_facts import made_up_facts, words_of
from benchmarks.ground_truth.methods import METHODS
from benchmarks.ground_truth.planted_model import Planted, Training, planted
from benchmarks.ground_truth.planting import LEFT, PLANTINGS, RATE, REST, draw, owners
from benchmarks.ground_truth.run import rows
from dkn_engine.statistics.intervals import mean_estimate
from tests.docs.test_committed_results import rows_of, table

Groups = list[list[int]]
RELATIONS, LAYERS, WIDTH, MEMBERS = 3, 4, 48, 6


def hand_made() -> Iterator[tuple[Groups, int]]:
    """Labels of groups, and the number of planted ones."""
    yield [], 2
    yield [[0, 0, 0], [1, 1]], 2
    yield [[0] * 9 + [1], [1] * 8 + [-1, -1]], 2  # at 0.9 and below
    yield [[0, 1], [1, 0]], 2
    yield [[-1, -1], [1]], 3
    yield [[0, 0], [0], [1, 1, 1], [2, -1]], 3
    rng = np.random.default_rng(0)
    for _ in range(50):
        ways = int(rng.integers(2, 4))
        sizes = rng.integers(1, 6, size=rng.integers(0, 5))
        # Two kinds of labels a group, so that pure groups are drawn.
        kinds = [rng.choice([-1, *range(ways)], size=2) for _ in sizes]
        yield [rng.choice(k, size=n).tolist() for k, n in zip(kinds, sizes, strict=True)], ways


@pytest.mark.parametrize(("groups", "ways"), list(hand_made()))
def test_scores_of_groups_are_those_of_plain_counting(groups: Groups, ways: int) -> None:
    shares = [[group.count(way) / len(group) for way in range(ways)] for group in groups]
    pure = [max(of_each) for of_each in shares]
    stands = [
        [way for way in range(ways) if of_each[way] >= 0.9] for of_each in shares
    ]  # one at most
    given = [np.array(group) for group in groups]
    found = {way for some in stands for way in some}
    assert scores.matched(given) == [some[0] if some else -1 for some in stands]
    assert scores.group_recall(given, ways) == pytest.approx(len(found) / ways)
    assert scores.is_exact(given, ways) == (len(groups) == len(found) == ways)
    of_theirs = sum(
        group.count(some[0]) for group, some in zip(groups, stands, strict=True) if some
    )
    assert scores.coverage(given, 40) == pytest.approx(of_theirs / 40)
    if not groups:
        assert math.isnan(scores.mean_purity(given))
        assert math.isnan(scores.group_precision(given))
        return
    assert [scores.purity(group) for group in given] == pytest.approx(pure)
    assert scores.mean_purity(given) == pytest.approx(sum(pure) / len(pure))
    assert scores.group_precision(given) == pytest.approx(sum(map(bool, stands)) / len(groups))


@pytest.mark.parametrize("labels", [[], [0, 1, -1, 1], [-1, -1]])
def test_scores_of_neurons_are_those_of_plain_counting(labels: list[int]) -> None:
    inside = [way for way in labels if way >= 0]
    assert scores.neuron_recall(np.array(labels, dtype=int), 8) == len(inside) / 8
    precision = scores.neuron_precision(np.array(labels, dtype=int))
    assert precision == (
        len(inside) / len(labels) if labels else pytest.approx(math.nan, nan_ok=True)
    )


@pytest.mark.parametrize("name", PLANTINGS)
def test_groups_are_disjoint_and_where_the_planting_says(name: str) -> None:
    planting = PLANTINGS[name]
    owner = owners(planting, RELATIONS, LAYERS, WIDTH, MEMBERS)
    assert owner.shape == (LAYERS, WIDTH)
    layers = {}
    for group in range(RELATIONS * planting.ways):
        where = (owner == group).nonzero()
        assert len(where) == MEMBERS
        layers[group] = set(where[:, 0].tolist())
    for group, found in layers.items():
        apart = planting.split == "between"
        assert found == (({0, 1}, {2, 3})[group % 2] if apart else {1, 2})


def test_groups_without_a_place_are_refused() -> None:
    with pytest.raises(ValueError, match="13 neurons a group has no place in 4 layers of 48"):
        owners(PLANTINGS["two"], RELATIONS, LAYERS, WIDTH, 13)
    with pytest.raises(ValueError, match="18 neurons a group"):
        owners(PLANTINGS["two"], RELATIONS, LAYERS, WIDTH, 18)


@pytest.mark.parametrize("name", PLANTINGS)
def test_states_of_training_are_answered_as_the_planting_says(name: str) -> None:
    planting, ways = PLANTINGS[name], PLANTINGS[name].ways
    owner = owners(planting, RELATIONS, LAYERS, WIDTH, MEMBERS)
    relation = torch.arange(RELATIONS).repeat(200)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = draw(planting, owner, relation, unknown=0.05)
    shares = set()
    for gates, mine, share, r in zip(state.gates, state.mine, state.share, relation, strict=True):
        groups = [gates[owner == int(r) * ways + way] for way in range(ways)]
        assert mine.sum() == ways * MEMBERS
        assert all(mine[owner == int(r) * ways + way].all() for way in range(ways))
        whole = [bool(group.all()) for group in groups]
        if planting.answered == "independent":
            off = 1 - torch.cat(groups).float().mean()
            assert float(share) == pytest.approx(LEFT * math.exp(-RATE * off), rel=1e-6)
        else:
            answered = any(whole) if planting.answered == "any" else all(whole)
            assert float(share) == pytest.approx(1.0 if answered else 0.05)
        shares.add(round(float(share), 4))
    assert len(shares) >= 2
    strange = state.gates[~state.mine].float().mean()
    assert 0.7 < strange < 0.8  # all in half the states, half of them in the others
    assert state.gates[:, owner == REST].any(0).all()


def test_facts_are_distinct_and_each_has_an_answer_of_its_own() -> None:
    facts = made_up_facts(3)
    assert len({f.id for f in facts}) == len({f.answer for f in facts}) == len(facts)
    texts = [text for f in facts for text in (f.prompt, *f.paraphrases)]
    assert len(set(texts)) == 3 * len(facts)
    assert {w for t in texts for w in t.split()} <= set(words_of(facts))
    assert [f.answer for f in facts] != [f.answer for f in made_up_facts(4)]


@pytest.fixture(scope="module")
def tiny() -> Planted:
    return planted(Training("llama", "two", layers=2, neurons=32, members=4, steps=250))


@pytest.fixture(scope="module")
def figures(tiny: Planted) -> list[Figure]:
    some = dataclasses.replace(tiny, facts=tiny.facts[::3])  # two of each relation
    return examine(some, {name: METHODS[name] for name in ("NTC", "random groups")})


def test_the_planting_is_there_and_the_planted_groups_score_full_marks(
    figures: list[Figure],
) -> None:
    by_name = {(f.location, f.method, f.name): f.value for f in figures}

    def p(left: int, positions: str) -> float:
        return by_name["", "", f"p, {left} of 2 groups on, {positions} positions"]

    for positions in ("answer", "all"):
        assert p(2, positions) > 0.8
        assert p(1, positions) > 0.6
        assert p(0, positions) < 0.2
    assert by_name["given", "", "neuron precision"] == 0.5
    assert by_name["given", "", "neuron recall"] == 1
    for name in ("degenerate", "group recall", "purity", "exact", "coverage"):
        assert by_name["given", TRUTH, name] > 0.6, name
    assert by_name["given", "random groups", "exact"] < by_name["given", TRUTH, "exact"]


def test_figures_become_means_over_seeds_with_their_interval() -> None:
    values = [0.1, 0.4, 0.2, 0.8, 0.5, math.nan, 0.3]
    of_seed = [[Figure("given", "NTC", "purity", v), Figure("", "", "p", 1.0)] for v in values]
    purity, p = rows(Training(), of_seed)
    estimate = mean_estimate(values)
    assert purity["seeds"] == estimate.n == 6
    shown = [float(str(purity[k])) for k in ("mean", "ci_low", "ci_high")]
    assert shown == pytest.approx([estimate.mean, *estimate.bounds], abs=5e-4)
    assert (p["mean"], p["ci_low"], p["no_interval"]) == ("1", "nan", "all values are equal")
    assert (purity["layout"], purity["planting"], purity["location"]) == ("gpt2", "two", "given")


PAGE = Path(__file__).parents[2] / "docs" / "ground_truth.md"
REDUNDANT = ("gpt2-two", "llama-two", "gpt2-three", "gpt2-layers")
NULLS = ("gpt2-twin", "llama-twin", "gpt2-independent")
Cells = dict[tuple[str, str, str, str], dict[str, str]]


@pytest.fixture(scope="module")
def committed() -> Cells:
    return {
        (f"{r['layout']}-{r['planting']}", r["location"], r["method"], r["figure"]): r
        for r in rows_of("ground_truth.csv")
    }


def shown(row: dict[str, str]) -> str:
    mean, low, high = (f"{float(row[k]):.2f}" for k in ("mean", "ci_low", "ci_high"))
    return mean if row["no_interval"] else f"{mean} [{low}, {high}]"


def test_the_page_shows_what_the_planted_models_do(committed: Cells) -> None:
    found = table(PAGE, "| model | all groups on")
    assert [row[0] for row in found] == [*REDUNDANT, *NULLS]
    for cell, *figures in found:
        ways = PLANTINGS[cell.split("-")[1]].ways
        names = [f"p, {left} of {ways} groups on, answer positions" for left in (ways, 1, 0)]
        names += ["p, one neuron of the last group off", "p, all other neurons off"]
        assert figures == [f"{float(committed[cell, '', '', n]['mean']):.2f}" for n in names], cell


def test_the_page_shows_how_neurons_are_located(committed: Cells) -> None:
    found = table(PAGE, "| model | masked")
    assert [row[0] for row in found] == [*REDUNDANT, *NULLS]
    for cell, *figures in found:
        assert figures == [
            shown(committed[cell, baseline, "", f"neuron {name}"])
            for baseline in ("masked", "zero")
            for name in ("precision", "recall")
        ], cell


SHOWN = {
    "neurons given: recall": ("given", "group recall", REDUNDANT),
    "neurons given: coverage": ("given", "coverage", REDUNDANT),
    "neurons given: degenerate": ("given", "degenerate", NULLS),
    "neurons located: recall": ("zero", "group recall", REDUNDANT),
    "neurons located: degenerate": ("zero", "degenerate", NULLS),
}


@pytest.mark.parametrize("header", SHOWN)
def test_the_page_shows_every_method(committed: Cells, header: str) -> None:
    location, figure, cells = SHOWN[header]
    found = table(PAGE, f"| {header} | " + " | ".join(cells))
    assert [row[0] for row in found] == [TRUTH, *METHODS]
    for method, *figures in found:
        expected = [shown(committed[cell, location, method, figure]) for cell in cells]
        assert figures == expected, method


def test_the_page_says_what_was_measured(committed: Cells) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    own = [committed[cell, "given", TRUTH, "redundancy"] for cell in REDUNDANT]
    chance = committed["gpt2-independent", "given", "AMIG pairs", "redundancy"]
    lowest = min(float(row["mean"]) for row in own)
    assert f"a mean redundancy of {lowest:.0f} or more" in text
    assert f"with a redundancy of {float(chance['mean']):.1f}" in text
    assert f"on {own[0]['seeds']} seeds" in text
    chances = [
        100 * float(committed[cell, "given", "random groups", "degenerate"]["mean"])
        for cell in REDUNDANT
    ]
    assert f"for {min(chances):.0f} to {max(chances):.0f} % of the facts" in text
