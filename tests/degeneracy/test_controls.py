"""Controls: random sets, unrelated facts, paraphrases, means; what ``examine`` puts together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy import controls
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.control_subsets import Subsets
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, nothing, suppress
from dkn_engine.degeneracy.functional_filter import examine
from dkn_engine.degeneracy.lattice import Lattice, drops, members_of, subset_masks
from dkn_engine.degeneracy.questions import Asked
from dkn_engine.degeneracy.reference_facts import ENOUGH, POOL, Reference, build_reference, knows
from dkn_engine.facts import load_facts
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from dkn_engine.neurons import random_sets
from dkn_engine.seeds import generator
from dkn_engine.types import Component, Degeneracy, Drops, Fact
from tests.support.brute_force_edits import answer_probability
from tests.support.tiny import N_LAYERS, VOCABULARY, WIDTH, sequence, sequences, tiny
from tests.support.words import text, word, words_tokenizer

SETS = [
    np.array([[0, 1], [0, 2], [1, 5]], dtype=np.int32),
    np.array([[1, 6], [2, 0]], dtype=np.int32),
    np.array([[0, 9], [2, 3]], dtype=np.int32),
]
LOCATED = np.concatenate([*SETS, np.array([[0, 30], [1, 31]], dtype=np.int32)])
RTOL = 1e-10  # The models are float64.


def pairs(neurons: np.ndarray) -> set[tuple[int, int]]:
    return {(int(l), int(i)) for l, i in neurons}


def components(sets: list[np.ndarray] = SETS) -> tuple[Component, ...]:
    return tuple(Component(s, 0.0, 1.0, 1.0 - 0.1 * i) for i, s in enumerate(sets))


# --- edits of subsets ---


@pytest.mark.parametrize("with_means", [False, True])
@pytest.mark.parametrize("masks", [np.arange(8), np.array([0, 5, 7]), np.array([], np.int64)])
def test_edits_of_subsets_are_those_of_their_members_one_after_another(
    masks: np.ndarray, with_means: bool
) -> None:
    means = np.random.default_rng(0).normal(size=(3, 40)) if with_means else None
    found = controls.subset_edits(SETS, masks, means)
    assert len(found) == len(masks)
    for mask, edit in zip(masks.tolist(), found, strict=True):
        members = [SETS[i] for i in members_of(mask)]
        expected = suppress(np.concatenate([np.empty((0, 2), np.int32), *members]), means)
        for name in ("neurons", "factor", "offset"):
            ours, theirs = getattr(edit, name), getattr(expected, name)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)


def test_edits_of_the_highest_component_that_a_mask_can_name() -> None:
    sets = [np.array([[0, i]], dtype=np.int32) for i in range(62)]
    (edit,) = controls.subset_edits(sets, np.array([1 << 61 | 1]))
    assert edit.neurons.tolist() == [[0, 0], [0, 61]]


def test_edits_of_no_sets() -> None:
    (edit,) = controls.subset_edits([], np.array([0]))
    assert edit.neurons.shape == (0, 2)


def test_edits_of_sets_that_overlap_are_refused() -> None:
    sets = [np.array([[2, 7], [1, 3]]), np.array([[1, 3], [2, 7]])]
    with pytest.raises(ValueError, match=r"distinct; got \(1, 3\) twice"):
        controls.subset_edits(sets, np.arange(4))


# --- random sets ---


@pytest.mark.parametrize("seed", range(20))
def test_random_sets_match_sizes_and_layers_and_avoid_what_is_located(seed: int) -> None:
    found = random_sets(SETS, LOCATED, WIDTH, np.random.default_rng(seed))
    assert len(found) == len(SETS)
    for drawn, given in zip(found, SETS, strict=True):
        assert drawn.dtype == np.int32
        assert sorted(drawn[:, 0].tolist()) == sorted(given[:, 0].tolist())
    everything = np.concatenate(found)
    assert len(pairs(everything)) == len(everything)
    assert not pairs(everything) & pairs(LOCATED)
    assert everything.min() >= 0
    assert everything[:, 1].max() < WIDTH


def test_random_sets_are_uniform_over_free_neurons() -> None:
    located = np.array([[0, 0], [0, 1]], dtype=np.int32)
    rng, counts = np.random.default_rng(0), np.zeros(6)
    n = 3000
    for _ in range(n):
        (drawn,) = random_sets([np.array([[0, 0], [0, 1]])], located, 6, rng)
        counts[drawn[:, 1]] += 1
    assert counts[:2].tolist() == [0, 0]
    # Two of four a draw: a binomial of share 0.5; five standard deviations.
    assert np.abs(counts[2:] / n - 0.5).max() < 5 * math.sqrt(0.25 / n)


def test_random_sets_of_a_layer_that_is_all_located_are_drawn_from_it() -> None:
    located = np.array([[0, i] for i in range(4)], dtype=np.int32)
    found = random_sets([located[:2], located[2:]], located, 4, np.random.default_rng(0))
    assert [len(s) for s in found] == [2, 2]
    assert pairs(np.concatenate(found)) == pairs(located)


def test_no_sets_are_matched_by_none() -> None:
    assert random_sets([], LOCATED, WIDTH, np.random.default_rng(0)) == []


def test_random_numbers_depend_on_seed_and_names_alone() -> None:
    draws = {
        key: generator(*key).random()
        for key in ((0, "a"), (0, "b"), (1, "a"), (0, "a", "b"), (0, "b", "a"))
    }
    assert len(set(draws.values())) == len(draws)
    assert generator(0, "a").random() == draws[0, "a"]
    generator(-1, "a")
    generator(0, "\ud800")  # An id that is no valid Unicode.


def test_an_average_leaves_out_what_is_undefined() -> None:
    found = controls.average(
        [
            Drops(0.1, 0.4, 1.0, excess=0.0),
            Drops(0.3, 0.6, excess=0.9),
            Drops(float("nan"), 0.8, 3.0, excess=0.2),
        ]
    )
    assert found.partial_drop == pytest.approx(0.2)
    assert found.full_drop == pytest.approx(0.6)
    assert found.redundancy == pytest.approx(2.0)
    assert found.excess == pytest.approx(0.2)
    assert (found.n, found.n_redundancy) == (3, 2)
    assert found.partial_std == pytest.approx(math.sqrt(0.02))
    assert found.full_std == pytest.approx(0.2)
    alone = controls.average([Drops(0.1, 0.4)])
    assert (alone.partial_drop, alone.full_drop, alone.n) == (0.1, 0.4, 1)
    assert math.isnan(alone.partial_std)


# --- the lattice of a fact against brute force ---


def lattice_by_force(
    model: Any, one: AnswerSequence, sets: list[np.ndarray], means: Any = None
) -> Lattice:
    p = []
    for mask in range(1 << len(sets)):
        chosen = [sets[i] for i in members_of(mask)]
        edit = suppress(np.concatenate(chosen), means) if chosen else nothing()
        p.append(answer_probability("llama", model, one, edit))
    return Lattice(len(sets), np.arange(1 << len(sets)), np.array(p))


def same(found: Any, expected: Drops) -> None:
    assert isinstance(found, Drops)
    for name in ("partial_drop", "full_drop", "redundancy", "partial_std", "full_std", "excess"):
        want = getattr(expected, name)
        # A drop is a difference, so what is relative is the probability.
        assert getattr(found, name) == pytest.approx(want, rel=1e-6, abs=1e-9, nan_ok=True), name
    assert (found.n, found.n_redundancy) == (expected.n, expected.n_redundancy)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


@pytest.fixture(scope="module")
def prompts(model: Any) -> Prompts:
    return Prompts(model, find_layout(model), sequences())


KNOWN = FilterConfig(require_rank_1=False, min_probability=0.0, control_precision=0.0)


def subsets_of(q: int, precision: float, seed: int = 0) -> Subsets:
    return Subsets.of(q, precision, np.random.default_rng(seed))


def facts_of(some: list[AnswerSequence]) -> list[Fact]:
    return [
        Fact(f"f{i}", text(s.ids[: s.n_prompt]), text(s.targets), subject=f"s{i}")
        for i, s in enumerate(some)
    ]


def reference_of(model: Any, some: list[AnswerSequence]) -> Reference:
    prompts = Prompts(model, find_layout(model), some)
    means = prompts.first_activations().mean(0)
    return Reference(tuple(facts_of(some)), prompts, np.ones(len(some), dtype=bool), means)


def examined(prompts: Prompts, sets: list[np.ndarray], b: int = 2, **options: Any) -> Degeneracy:
    config = Config(filter=options.pop("config", KNOWN))
    fact = facts_of(sequences())[b]
    return examine(prompts, b, components(sets), LOCATED, fact, config, **options)


@pytest.mark.parametrize("b", [0, 1, 2])
def test_a_lattice_equals_brute_force(model: Any, prompts: Prompts, b: int) -> None:
    found = examined(prompts, SETS, b)
    expected = lattice_by_force(model, sequences()[b], SETS)
    assert found.subset_masks.tolist() == list(range(8))
    np.testing.assert_allclose(found.subset_probabilities, expected.probabilities, rtol=RTOL)
    same(found.candidates, drops(expected))
    for i, component in enumerate(found.components):
        assert component.probability_alone == pytest.approx(expected.at(7 ^ (1 << i)), rel=RTOL)
        drop = 1 - expected.at(1 << i) / expected.at(0)
        assert component.drop_if_suppressed == pytest.approx(drop, rel=1e-6, abs=1e-12)


def test_members_alone_with_the_rest_suppressed(model: Any, prompts: Prompts) -> None:
    config = FilterConfig(min_alone=0.0, max_none=1.0)
    lattice = lattice_by_force(model, sequences()[2], SETS)
    found = examined(prompts, SETS, config=config)
    assert len(found.dkn) >= 2  # Of three candidates of a random model; else nothing is tested.
    expected = family(lattice, found.dkn)
    own = found.partial_drop, found.full_drop, found.redundancy
    same(Drops(*own, excess=found.excess, n_redundancy=expected.n_redundancy), expected)
    left = []
    for kept in [*(SETS[i] for i in found.dkn), np.empty((0, 2), np.int32)]:
        off = np.array(sorted(pairs(LOCATED) - pairs(kept)), dtype=np.int32)
        left.append(answer_probability("llama", model, sequences()[2], suppress(off)))
    np.testing.assert_allclose(found.rest_suppressed, left, rtol=RTOL)


def family(lattice: Lattice, members: tuple[int, ...]) -> Drops:
    return drops(lattice.restrict(members))


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_components_are_no_family(prompts: Prompts, n: int) -> None:
    config = FilterConfig(min_alone=0.0, max_none=1.0)
    found = examined(prompts, SETS[:n], config=config, reference=None)
    assert found.dkn == ()
    assert found.rest_suppressed.shape == (0,)
    assert math.isnan(found.partial_drop)
    assert found.subset_probabilities.shape == (1 << n,)
    assert found.subset_probabilities[0] == pytest.approx(prompts.probability[2], rel=RTOL)
    if n == 0:
        assert (found.components, found.candidates, found.controls) == ((), None, {})
        assert math.isnan(found.full_drop)
    else:
        assert found.components[0].probability_alone == found.subset_probabilities[0]
        assert found.redundancy == pytest.approx(1)
        assert found.controls["random"].n == 5


def test_random_controls_are_means_over_their_draws(model: Any, prompts: Prompts) -> None:
    asked, exact = controls.Suppressed(prompts, [1], SETS), subsets_of(3, 0)
    five = (5, np.random.default_rng(7), exact)
    (found,) = together([controls.random_control(asked, LOCATED, *five)])
    rng = np.random.default_rng(7)
    measured = []
    for _ in range(5):
        drawn = random_sets(SETS, LOCATED, WIDTH, rng)
        measured.append(drops(lattice_by_force(model, sequences()[1], drawn)))
    same(found, controls.average(measured))
    assert isinstance(found, Drops)
    assert found.n == 5
    none = controls.random_control(asked, LOCATED, 0, rng, exact)
    assert together([none]) == [None]


def test_controls_elsewhere_are_means_over_the_other_prompts(model: Any, prompts: Prompts) -> None:
    asked = [controls.Suppressed(prompts, some, SETS) for some in ([0, 2], [])]
    found, none = together([controls.elsewhere(one, subsets_of(3, 0)) for one in asked])
    measured = [drops(lattice_by_force(model, sequences()[b], SETS)) for b in (0, 2)]
    same(found, controls.average(measured))
    assert none is None


def test_examine_reports_every_control_that_can_be_measured(model: Any, prompts: Prompts) -> None:
    reference = reference_of(model, [sequence(4, 2, seed=s) for s in range(10, 18)])
    paraphrases = Prompts(model, find_layout(model), [sequence(4, 2, seed=s) for s in (20, 21)])
    found = examined(prompts, SETS, paraphrases=paraphrases, reference=reference)
    assert found.dkn == ()  # So the figures are those of all candidates.
    assert set(found.controls) == {"random", "paraphrases", "unrelated", "mean_ablation"}
    assert [found.controls[n].n for n in ("random", "paraphrases", "unrelated")] == [5, 2, 3]
    with_means = lattice_by_force(model, sequences()[2], SETS, reference.means)
    same(found.controls["mean_ablation"], drops(with_means))
    on_paraphrases = [
        drops(lattice_by_force(model, sequence(4, 2, seed=s), SETS)) for s in (20, 21)
    ]
    same(found.controls["paraphrases"], controls.average(on_paraphrases))


def test_paraphrases_that_the_model_does_not_answer_are_left_out(
    model: Any, prompts: Prompts
) -> None:
    some = [sequence(4, 1, seed=s) for s in range(20, 24)]
    paraphrases = Prompts(model, find_layout(model), some)
    least = float(np.sort(paraphrases.probability)[1]) * (1 + 1e-9)
    config = FilterConfig(require_rank_1=False, min_probability=least)
    found = examined(prompts, SETS, config=config, paraphrases=paraphrases)
    assert (found.controls["paraphrases"].n, found.n_paraphrases_not_known) == (2, 2)
    assert found.n_paraphrases_known == 2
    without = examined(prompts, [], config=config, paraphrases=paraphrases)
    assert (without.n_paraphrases_known, without.holds) == (2, False)
    none = FilterConfig(require_rank_1=False, min_probability=1.0)
    found = examined(prompts, SETS, config=none, paraphrases=paraphrases)
    assert "paraphrases" not in found.controls
    assert found.n_paraphrases_not_known == 4
    assert examined(prompts, SETS).n_paraphrases_not_known is None


def test_suppressing_to_means_uses_them_everywhere(model: Any, prompts: Prompts) -> None:
    reference = reference_of(model, [sequence(4, 1, seed=s) for s in range(10, 18)])
    config = FilterConfig(suppress_value="mean", require_rank_1=False, min_probability=0.0)
    found = examined(prompts, SETS, config=config, reference=reference)
    expected = lattice_by_force(model, sequences()[2], SETS, reference.means)
    np.testing.assert_allclose(found.subset_probabilities, expected.probabilities, rtol=RTOL)
    same(found.controls["mean_ablation"], drops(expected))
    with pytest.raises(ValueError, match="reference must be given"):
        examined(prompts, SETS, config=config)


def edits_of(
    prompts: Prompts, sets: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> list[list[Edit]]:
    """The edits of each question that the filter asks about one fact, in order."""
    asked: list[list[Edit]] = []
    original = prompts.with_objective

    def remember(some: Sequence[Asked], **options: Any) -> Any:
        asked.extend(list(one.edits) for one in some)
        return original(some, **options)

    with monkeypatch.context() as patch:
        patch.setattr(prompts, "with_objective", remember)
        examined(prompts, sets, config=dataclasses.replace(KNOWN, n_regrouped=0, **options))
    return asked


def test_large_families_are_controlled_on_a_sample(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [np.array([[i % N_LAYERS, i]], dtype=np.int32) for i in range(7)]
    asked = [len(edits) for edits in edits_of(prompts, sets, monkeypatch, n_random=2)]
    # All 2^7 subsets of the candidates; the sample of the controls in each of two draws.
    assert asked == [128, 2 * 32]


def test_a_sampled_lattice_comes_with_its_masks(model: Any, prompts: Prompts) -> None:
    sets = [np.array([[i % N_LAYERS, i]], dtype=np.int32) for i in range(6)]
    config = FilterConfig(exact_limit=3, n_samples=20, n_random=0)
    found = examined(prompts, sets, config=config)
    assert len(found.subset_masks) == len(found.subset_probabilities) == 20
    whole = lattice_by_force(model, sequences()[2], sets)
    expected = whole.probabilities[found.subset_masks]
    np.testing.assert_allclose(found.subset_probabilities, expected, rtol=RTOL)
    again = examined(prompts, sets, config=config)
    assert again.subset_masks.tolist() == found.subset_masks.tolist()


def test_examine_does_not_depend_on_the_chunk(model: Any, prompts: Prompts) -> None:
    """The same draws whatever else the chunk holds and whatever ran before."""
    alone = Prompts(model, find_layout(model), [sequences()[2]])
    fact = facts_of(sequences())[2]
    one = examine(alone, 0, components(), LOCATED, fact, Config(filter=KNOWN))
    other = examined(prompts, SETS)
    same(one.controls["random"], other.controls["random"])
    seeded = examine(alone, 0, components(), LOCATED, fact, Config(filter=KNOWN, seed=1))
    assert seeded.controls["random"].full_drop != one.controls["random"].full_drop


MANY = [np.array([[i % N_LAYERS, i]], dtype=np.int32) for i in range(7)]


@pytest.mark.parametrize("sets", [SETS, MANY], ids=["all subsets", "a sample of them"])
@pytest.mark.parametrize(
    ("changed", "options"),
    [
        ("random", {"n_random": 4}),
        ("random", {"n_random": 0}),
        ("unrelated", {"n_unrelated": 2}),
        ("paraphrases", {}),
        ("lattice", {"exact_limit": 2, "n_samples": 6}),
        ("lattice", {"exact_limit": 2, "n_samples": 7}),
    ],
)
def test_no_control_changes_with_the_draws_of_another(
    model: Any, prompts: Prompts, sets: list[np.ndarray], changed: str, options: dict[str, Any]
) -> None:
    """Every control has random numbers of its own: bit for bit the same whatever the others do."""
    reference = reference_of(model, [sequence(4, 2, seed=s) for s in range(10, 18)])
    paraphrases = Prompts(model, find_layout(model), [sequence(4, 2, seed=s) for s in (20, 21)])
    given: dict[str, Any] = {"reference": reference, "paraphrases": paraphrases}
    before = dataclasses.replace(KNOWN, n_random=3)
    one = examined(prompts, sets, config=before, **given)
    if changed == "paraphrases":
        del given["paraphrases"]
    other = examined(prompts, sets, config=dataclasses.replace(before, **options), **given)
    assert one.dkn == other.dkn == ()  # So that the controls are of all candidates.
    for name in {"random", "unrelated", "paraphrases", "mean_ablation"} - {changed}:
        found, expected = (np.hstack(dataclasses.astuple(r.controls[name])) for r in (other, one))
        np.testing.assert_array_equal(found, expected, err_msg=name)
    if changed != "lattice":
        np.testing.assert_array_equal(other.subset_masks, one.subset_masks)
        assert other.controls.get(changed) != one.controls[changed]


@pytest.mark.parametrize("sets", [SETS, MANY], ids=["all subsets", "a sample of them"])
def test_more_draws_begin_with_the_same_ones(
    prompts: Prompts, sets: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, few), (_, more) = (edits_of(prompts, sets, monkeypatch, n_random=n) for n in (3, 5))
    assert len(more) == len(few) * 5 // 3
    for one, other in zip(few, more, strict=False):
        np.testing.assert_array_equal(one.neurons, other.neurons)


def test_a_larger_sample_of_subsets_holds_the_smaller_one() -> None:
    few, more = (subset_masks(12, 3, n, generator(0, "f", "lattice")) for n in (60, 90))
    assert (len(few), len(more)) == (60, 90)
    assert np.isin(few, more).all()


# --- reference facts ---


def test_unrelated_facts_are_known_and_have_another_answer_and_subject(model: Any) -> None:
    def fact(i: int, answer: str, subject: str | None, relation: str) -> Fact:
        return Fact(f"r{i}", "w5", answer, subject=subject, relation=relation)

    some = (
        fact(0, "w9", "x", "other"),  # the same answer
        fact(1, "w8", "me", "other"),  # the same subject
        fact(2, "w8", "x", "mine"),  # the same relation
        fact(3, "w8", "y", "other"),
        fact(4, "w7", None, "other"),
        fact(5, "w8", "z", "other"),  # not known
        Fact("me", "w5", "w6", relation="other"),  # the fact itself
    )
    prompts = Prompts(model, find_layout(model), [sequence(3, 1)] * len(some))
    known = np.array([True] * 5 + [False, True])
    reference = Reference(some, prompts, known, np.zeros((N_LAYERS, WIDTH)))
    me = Fact("me", "w5", "w9", subject="me", relation="mine")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert reference.unrelated(me, 2, rng) == [3, 4]
        # Of the same relation only where there are not enough others.
        assert reference.unrelated(me, 3, rng) == [2, 3, 4]
        assert reference.unrelated(me, 9, rng) == [2, 3, 4]
        assert reference.unrelated(me, 0, rng) == []
    one = {reference.unrelated(me, 1, np.random.default_rng(s))[0] for s in range(20)}
    assert one == {3, 4}


def test_facts_without_subjects_count_as_apart(model: Any) -> None:
    some = (Fact("a", "w5", "w8"), Fact("b", "w5", "w9"))
    prompts = Prompts(model, find_layout(model), [sequence(3, 1)] * 2)
    reference = Reference(some, prompts, np.ones(2, bool), np.zeros((N_LAYERS, WIDTH)))
    assert reference.unrelated(Fact("me", "w5", "w7"), 5, np.random.default_rng(0)) == [0, 1]


def built(
    facts: list[Fact], config: Config | None = None, others: list[Fact] | None = None
) -> Reference | None:
    model = tiny("llama")
    layout = find_layout(model)
    others = load_facts("demo") if others is None else others
    return build_reference(model, words_tokenizer(), layout, facts, config or Config(), others)


def many_facts(n: int) -> list[Fact]:
    return [Fact(f"f{i}", text([5, 6, 3 + i % 50]), word(3 + i % 40)) for i in range(n)]


def test_the_reference_is_a_fixed_sample_of_many_facts() -> None:
    facts = many_facts(POOL + 10)
    one, again = built(facts), built(facts)
    other = built(facts, Config(seed=1))
    assert one is not None
    assert again is not None
    assert other is not None
    ids = [f.id for f in one.facts]
    assert len(ids) == len(set(ids)) == len(one.prompts) == POOL
    assert set(ids) <= {f.id for f in facts}
    assert ids == [f.id for f in again.facts]
    assert ids != [f.id for f in other.facts]
    np.testing.assert_array_equal(one.means, again.means)


def test_few_facts_are_filled_up_with_others_which_are_counted() -> None:
    facts, tokenizer = many_facts(3), words_tokenizer()
    tokenizer.add_tokens([w for f in load_facts("demo") for w in f.answer.split()])
    model = tiny("llama", vocab_size=len(tokenizer))
    own = [*facts, Fact("bad", "w5", " ")]
    found = build_reference(model, tokenizer, find_layout(model), own, Config(), load_facts("demo"))
    assert found is not None
    assert len(found.facts) == ENOUGH
    assert {f.id for f in found.facts[:3]} == {f.id for f in facts}
    packaged = [f.id for f in found.facts[3:]]
    assert packaged == [f.id for f in load_facts("demo")[: ENOUGH - 3]]
    assert found.n_filled == ENOUGH - 3
    assert found.is_enough


def test_packaged_facts_whose_answers_a_tokenizer_does_not_know_are_no_controls() -> None:
    found = built(many_facts(3))
    assert found is not None
    assert sorted(f.id for f in found.facts) == ["f0", "f1", "f2"]


def test_enough_facts_are_not_filled_up() -> None:
    found = built(many_facts(ENOUGH))
    assert found is not None
    assert {f.id for f in found.facts} == {f.id for f in many_facts(ENOUGH)}
    assert found.n_filled == 0


def test_few_facts_without_others_are_no_control_of_means(model: Any, prompts: Prompts) -> None:
    """The mean over one fact is its own activation: setting it to that would change nothing."""
    found = built(many_facts(3), others=[])
    assert found is not None
    assert (len(found.facts), found.n_filled, found.is_enough) == (3, 0, False)
    assert built([], others=[]) is None
    reference = reference_of(model, [sequence(4, 2, seed=s) for s in range(10, 13)])
    measured = examined(prompts, SETS, reference=reference)
    assert set(measured.controls) == {"random", "unrelated"}
    assert (measured.n_reference, measured.n_reference_packaged) == (3, 0)
    filled = dataclasses.replace(reference, n_filled=2)
    assert examined(prompts, SETS, reference=filled).n_reference_packaged == 2


def test_the_means_are_those_of_the_first_answer_positions() -> None:
    found = built(many_facts(ENOUGH))
    assert found is not None
    expected = found.prompts.first_activations().mean(0)
    assert found.means.shape == (N_LAYERS, WIDTH)
    np.testing.assert_allclose(found.means, expected)
    assert found.known.shape == (ENOUGH,)


@pytest.mark.parametrize("require", [True, False])
def test_known_is_rank_one_and_probable_enough(model: Any, require: bool) -> None:
    some = [sequence(4, 1, seed=s) for s in range(6)]
    for i in (0, 1):  # Two that the model answers.
        ids = some[i].ids
        best = max(
            range(VOCABULARY),
            key=lambda t: answer_probability(
                "llama", model, AnswerSequence(ids, len(ids), (t,)), nothing()
            ),
        )
        some[i] = AnswerSequence(ids, len(ids), (best,))
    prompts = Prompts(model, find_layout(model), some)
    assert (prompts.rank[:2] == 1).all()
    assert (prompts.rank[2:] > 1).any()
    least = float(np.median(prompts.probability))
    config = FilterConfig(require_rank_1=require, min_probability=least)
    expected = [
        p >= least and (r == 1 or not require)
        for p, r in zip(prompts.probability, prompts.rank, strict=True)
    ]
    assert knows(prompts, config).tolist() == expected
    assert 0 < sum(expected) < len(some)
    assert dkn.FilterConfig is FilterConfig
