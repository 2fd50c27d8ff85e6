"""The regrouped control: what is drawn, its figures by brute force, and p-values that are valid."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy import controls
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.functional_filter import Examinee, examine, examine_chunk
from dkn_engine.degeneracy.lattice import Lattice, degenerate_family, drops
from dkn_engine.degeneracy.null_draws import Null, Outcome
from dkn_engine.degeneracy.regrouped import REGROUPED, regroup, regrouped_null
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.neurons import encode
from dkn_engine.types import Component, Degeneracy, Fact
from tests.degeneracy.test_controls import LOCATED, SETS, lattice_by_force
from tests.support.planted import EITHER, planted_model
from tests.support.tiny import N_LAYERS, WIDTH, sequences, tiny
from tests.support.words import words_tokenizer

NAN = math.nan
# Thresholds that some families of a random model pass, and some do not.
SOME = FilterConfig(
    min_alone=0.9, max_none=1.0, require_rank_1=False, min_probability=0.0, n_random=0
)


def codes(sets: Any) -> list[list[int]]:
    return [encode(one).tolist() for one in sets]


# --- what is drawn ---


@pytest.mark.parametrize("seed", range(10))
def test_groups_keep_their_sizes_and_layers_and_the_facts_neurons(seed: int) -> None:
    found = regroup(SETS, LOCATED, np.random.default_rng(seed))
    for drawn, given in zip(found, SETS, strict=True):
        assert drawn.dtype == np.int32
        assert sorted(drawn[:, 0].tolist()) == sorted(given[:, 0].tolist())
    every = [c for one in codes(found) for c in one]
    assert len(set(every)) == len(every)
    assert set(every) <= set(encode(LOCATED).tolist())
    # Whatever the order in which neurons are located, and in or out of their own groups.
    shuffled = np.random.default_rng(1).permutation(LOCATED)
    assert codes(regroup(SETS, shuffled, np.random.default_rng(seed))) == codes(found)
    assert codes(regroup(SETS, LOCATED[:0], np.random.default_rng(seed)))


def test_every_regrouping_is_equally_likely() -> None:
    located = np.array([[0, 3], [0, 5], [0, 8], [1, 2], [1, 9]], dtype=np.int32)
    sets = [located[[0, 3]], located[[1]]]
    rng, n = np.random.default_rng(0), 6000
    drawn = [tuple(map(tuple, codes(regroup(sets, located, rng)))) for _ in range(n)]
    counts = [drawn.count(one) for one in sorted(set(drawn))]
    # Three places for the first group's neuron of layer 0, two for the second's, two in layer 1.
    assert len(counts) == 3 * 2 * 2
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_nothing_to_exchange_gives_the_same_groups() -> None:
    sets = [np.array([[0, 1], [1, 4]], dtype=np.int32), np.array([[2, 5]], dtype=np.int32)]
    assert codes(regroup(sets, np.concatenate(sets), np.random.default_rng(0))) == codes(sets)
    assert regroup([], LOCATED, np.random.default_rng(0)) == []


# --- outcomes ---


@pytest.mark.parametrize(
    ("own", "drawn", "expected"),
    [
        ((True, 0.5), [(True, 0.4), (False, 9.0)], 0),
        ((True, 0.5), [(True, 0.5), (True, 0.6), (True, 0.5 - 1e-12)], 3),
        ((False, 0.5), [(True, -3.0), (False, 0.4), (False, 0.6)], 2),
        ((False, 0.5), [(False, NAN), (True, NAN)], 2),
        ((True, NAN), [(True, 0.1), (True, NAN), (False, 0.1)], 2),
    ],
)
def test_a_draw_counts_that_is_no_worse(
    own: tuple[bool, float], drawn: list[tuple[bool, float]], expected: int
) -> None:
    found = Null.of("draws", Outcome(*own), [Outcome(*one) for one in drawn])
    assert found.p == (1 + expected) / (1 + len(drawn))
    assert (found.draws, found.passing) == (len(drawn), sum(one[0] for one in drawn))


def test_no_draws_have_no_p_value() -> None:
    found = Null.of("draws", Outcome(True, 0.1), [])
    assert (found.draws, found.passing) == (0, 0)
    assert math.isnan(found.p)


# --- measured ---


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def prompts(model: Any) -> Prompts:
    return Prompts(model, find_layout(model), sequences())


def outcome(lattice: Lattice, persistence: list[float], rule: FilterConfig) -> Outcome:
    """By the whole lattice."""
    dkn = degenerate_family(lattice, persistence, rule.min_alone, rule.max_none)
    members = dkn or tuple(range(lattice.q))
    return Outcome(bool(dkn), drops(lattice.restrict(members)).excess)


def some_means(with_means: bool) -> np.ndarray | None:
    return np.random.default_rng(0).normal(size=(N_LAYERS, WIDTH)) if with_means else None


@functools.cache
def lattices_of_draws(seed: int, with_means: bool) -> list[Lattice]:
    """Of the groups themselves and of twelve draws; the same for each precision."""
    rng = np.random.default_rng(seed)
    groups = [SETS, *(regroup(SETS, LOCATED, rng) for _ in range(12))]
    model, means = tiny("llama"), some_means(with_means)
    return [lattice_by_force(model, sequences()[1], one, means) for one in groups]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_means", [False, True])
@pytest.mark.parametrize("precision", [0.0, 0.02])
def test_the_null_is_that_of_whole_lattices_by_brute_force(
    prompts: Prompts, seed: int, with_means: bool, precision: float
) -> None:
    """With a precision, of a fact without a family a quarter of the draws are counted."""
    persistence = [1.0, 0.9, 0.8]
    rule = dataclasses.replace(SOME, n_regrouped=12, control_precision=precision)
    lattice, *lattices = lattices_of_draws(seed, with_means)
    dkn = degenerate_family(lattice, persistence, rule.min_alone, rule.max_none)
    outcomes = [outcome(one, persistence, rule) for one in lattices]
    expected = Null.of(REGROUPED, outcome(lattice, persistence, rule), outcomes)
    assert bool(dkn) == with_means  # both come up
    if precision and not dkn:
        expected = Null(REGROUPED, 3, sum(one.passes for one in outcomes[:3]), 1.0)
    asked = controls.Suppressed(prompts, [1], SETS, some_means(with_means))
    (found,) = together(
        [
            regrouped_null(
                asked, LOCATED, (lattice, dkn), persistence, rule, np.random.default_rng(seed)
            )
        ]
    )
    assert found == expected


def test_equal_groups_are_asked_for_once(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws are the candidates themselves, so nothing is asked and none is worse."""
    sets = [np.array([[i, 5], [i, 7]], dtype=np.int32) for i in range(N_LAYERS)]
    n_edits: list[int] = []
    real = prompts.with_objective

    def counted(some: Any, **options: Any) -> Any:
        n_edits.append(sum(len(one.edits) for one in some))
        return real(some, **options)

    monkeypatch.setattr(prompts, "with_objective", counted)
    found = examined(prompts, sets, np.concatenate(sets), n_regrouped=5)
    assert n_edits[0] == 2 ** len(sets)
    assert (found.null, found.null_draws, found.null_p) == (REGROUPED, 5, 1.0)
    without = len(n_edits)
    n_edits.clear()
    assert examined(prompts, sets, np.concatenate(sets), n_regrouped=0).null is None
    assert len(n_edits) == without


def examined(
    prompts: Prompts, sets: Any, located: np.ndarray, name: str = "f", **options: Any
) -> Degeneracy:
    config = Config(filter=dataclasses.replace(SOME, **options))
    components = tuple(Component(s, 0.0, 1.0, 1.0) for s in sets)
    return examine(prompts, 2, components, located, Fact(name, "w1", "w2"), config)


@pytest.mark.parametrize(
    "given",
    [{"sets": SETS[:1]}, {"sets": []}, {"n_regrouped": 0}, {"method": "released"}],
    ids=["one candidate", "no candidate", "no draws", "the released filter"],
)
def test_there_is_no_null_where_none_can_be(prompts: Prompts, given: dict[str, Any]) -> None:
    found = examined(prompts, given.pop("sets", SETS), LOCATED, **given)
    assert (found.null, found.null_draws, found.null_passing) == (None, None, None)
    assert math.isnan(found.null_p)


def test_draws_are_of_the_seed_and_the_fact(prompts: Prompts) -> None:
    """More draws begin with the same ones: at least as many of them pass."""
    few, more = (examined(prompts, SETS, LOCATED, n_regrouped=n) for n in (10, 30))
    assert few.null_passing is not None
    assert more.null_passing is not None
    assert few.null_passing <= more.null_passing <= few.null_passing + 20
    p = {examined(prompts, SETS, LOCATED, name, n_regrouped=30).null_p for name in "abcdef"}
    assert len(p) > 1


# --- p-values ---

N_FACTS, N_DRAWS = 200, 19


def structureless(prompts: Prompts, n_facts: int, chosen_of: int) -> list[float]:
    """p-values of random groups of random neurons, in families that some draws pass.

    Of each fact the groups are the best of so many groupings, by the excess of all.
    """
    examinees = []
    for i in range(n_facts):
        rng = np.random.default_rng(i)
        flat = rng.choice(N_LAYERS * WIDTH, 12, replace=False)
        located = np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)
        best = regroup([located[:3], located[3:6], located[6:9]], located, rng)
        if chosen_of > 1:
            groupings = [best, *(regroup(best, located, rng) for _ in range(chosen_of - 1))]
            best = max(groupings, key=lambda sets: excess(prompts, i % 3, sets))
        components = [Component(one, 0.0, 1.0, 1.0) for one in best]
        examinees.append(Examinee(Fact(f"f{i}", "w1", "w2"), i % 3, components, located))
    rule = dataclasses.replace(SOME, n_regrouped=N_DRAWS, n_unrelated=0, control_precision=0.0)
    found = examine_chunk(prompts, examinees, Config(filter=rule))
    nulls = [one for one in found if isinstance(one, Degeneracy)]
    # Both verdicts are among them.
    assert 0.05 * n_facts < sum(one.is_degenerate for one in nulls) < 0.95 * n_facts
    return [one.null_p for one in nulls]


def excess(prompts: Prompts, sequence: int, sets: Any) -> float:
    return drops(controls.lattice_of(prompts, sequence, sets, np.arange(8))).excess


def uniformity(p_values: list[float]) -> float:
    """Of a Kolmogorov-Smirnov test; each p-value is spread over its step of 1 / (1 + draws)."""
    steps = np.random.default_rng(0).random(len(p_values)) / (1 + N_DRAWS)
    return float(scipy.stats.kstest(np.array(p_values) - steps, "uniform").pvalue)


def test_p_values_of_groups_without_structure_are_uniform(prompts: Prompts) -> None:
    p_values = structureless(prompts, N_FACTS, chosen_of=1)
    assert uniformity(p_values) > 0.05
    # Steps of 1 / 20, and no share below 0.05 that five standard deviations would not explain.
    at = np.array(p_values) * (1 + N_DRAWS)
    np.testing.assert_allclose(at, np.round(at))
    share = 0.05 + 5 * math.sqrt(0.05 * 0.95 / N_FACTS)
    assert np.mean(np.array(p_values) <= 0.05) < share


def test_p_values_of_chosen_groups_are_not(prompts: Prompts) -> None:
    """So the test above can tell."""
    assert uniformity(structureless(prompts, 60, chosen_of=6)) < 1e-6


def test_a_planted_family_is_beyond_chance() -> None:
    """Its neurons regrouped cover for one another, too, but hardly ever as well."""
    model = planted_model()
    one = planted_sequence(model)
    prompts = Prompts(model, find_layout(model), [one])
    sets = [np.array(sorted(s), dtype=np.int32) for s in EITHER.sets]
    components = tuple(Component(s, 0.0, 1.0, 1.0) for s in sets)
    config = Config(filter=FilterConfig(n_random=0, n_unrelated=0, n_regrouped=99))
    found = examine(prompts, 0, components, np.concatenate(sets), EITHER.fact, config)
    assert found.is_degenerate
    assert found.null_p <= 0.05


def planted_sequence(model: Any) -> Any:
    fact = EITHER.fact
    options: dict[str, Any] = {"config": Config().facts, "fact_id": fact.id}
    return encode_sequence(model, words_tokenizer(), fact.prompt, fact.answer, **options)
