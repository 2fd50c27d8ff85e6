"""Groups that cover for one another are found where they are, by a formula and in a model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dkn_engine as dkn
from dkn_engine.config import Config, FilterConfig
from dkn_engine.degeneracy import gates, prompt_batch
from dkn_engine.degeneracy.covering_groups import Drops, Groups, covering_groups
from dkn_engine.degeneracy.local_drops import suppressed_sets
from dkn_engine.errors import UserError
from dkn_engine.forward import encoding
from dkn_engine.models.layout import Mlp
from dkn_engine.run import stages
from tests.support.planted import BOTH, EITHER, Planted, planted_model
from tests.support.words import words_tokenizer

RULE = FilterConfig()
Measure = Callable[[NDArray[np.bool_]], Drops]


def formula(groups: list[list[int]], n: int, *, either: bool) -> Measure:
    """An answer that is given while one group is whole, or only while all are.

    ln p = ln sigmoid(8 x - 4), x being the softened share of whole groups: their product, so that
    slopes are 0 nowhere.
    """

    def log_p(gates: torch.Tensor) -> torch.Tensor:
        whole = torch.stack([gates[:, g].mean(1) ** 4 for g in groups])
        x = 1 - (1 - whole).prod(0) if either else whole.prod(0)
        return torch.nn.functional.logsigmoid(8 * x - 4)

    clean = float(log_p(torch.ones(1, n, dtype=torch.float64))[0])

    def measure(sets: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        gates = torch.from_numpy((~sets).astype(np.float64)).requires_grad_()
        value = log_p(gates)
        (slope,) = torch.autograd.grad(value.sum(), gates)
        return (clean - value.detach().numpy())[None], slope.numpy()[None]

    return measure


def found_in(measure: Measure, n: int) -> Groups:
    search, answer = covering_groups(n, RULE, np.random.default_rng(0)), None
    while True:
        try:
            sets = next(search) if answer is None else search.send(answer)
        except StopIteration as end:
            found: Groups = end.value
            return found
        answer = measure(sets)


@pytest.mark.parametrize(
    "groups", [[[0, 3, 4], [1, 6, 8]], [[0, 1], [2, 3, 4, 5]], [[0, 2], [1, 3], [4, 5]]]
)
def test_groups_of_which_any_one_will_do(groups: list[list[int]]) -> None:
    n = 10
    found = found_in(formula(groups, n, either=True), n)
    assert found.k == len(groups)
    assert found.passes(RULE)
    owner = np.full(n, -1)
    for g, members in enumerate(groups):
        owner[members] = g
    for label in range(found.k):
        own = set(owner[found.labels == label].tolist())
        assert len(own) == 1  # of one planted group
        assert -1 not in own
    # What is said of the groups is what the formula says.
    drops, _ = formula(groups, n, either=True)(suppressed_sets(found.labels, found.k))
    np.testing.assert_allclose(found.drops, drops, atol=1e-12)


def test_groups_that_need_one_another_do_not_pass() -> None:
    found = found_in(formula([[0, 3, 4], [1, 6, 8]], 10, either=False), 10)
    assert not found.passes(RULE)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_neurons_make_no_groups(n: int) -> None:
    groups = [[0]] if n else []

    def measure(sets: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return 0.1 * sets.sum(1)[None], np.full((1, len(sets), n), 0.1)

    found = found_in(measure if not groups else formula(groups, n, either=True), n)
    assert (found.k, found.labels.tolist()) == (0, [-1] * n)


def test_impossible_answers_are_no_error() -> None:
    """An answer may lose more than its dtype can say; groups with such sets are found or not."""
    inner = formula([[0, 2], [1, 3], [4, 5]], 6, either=True)

    def measure(sets: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        drops, slopes = inner(sets)
        lost = drops > 3
        return np.where(lost, np.inf, drops), np.where(lost[..., None], np.nan, slopes)

    with np.errstate(invalid="ignore"):
        found = found_in(measure, 6)
    assert found.k == 0 or found.passes(RULE)


def test_rows_are_bounded() -> None:
    rows = [0]
    inner = formula([[0, 2], [1, 3], [4, 5]], 10, either=True)

    def measure(sets: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows[0] += len(sets)
        return inner(sets)

    found = found_in(measure, 10)
    assert found.n_rows == rows[0] <= 2 * 10 + 327


CONFIG = Config().set(
    {"topology.clustering": "covering", "selection.threshold": 0.4, "filter.fill_reference": False}
)


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


def results(model: Any, facts: list[dkn.Fact], config: Config = CONFIG) -> list[dkn.FactResult]:
    return list(dkn.find_dkns(model, words_tokenizer(), facts, config))


def test_planted_groups_are_found_end_to_end_and_their_twin_is_not(model: Any) -> None:
    either, both = results(model, [EITHER.fact, BOTH.fact])
    # A set may have spare neurons, of which a fourth group can be made.
    assert len(either.dkn) >= len(EITHER.sets) == 3
    of_groups = [owners(EITHER, component) for component in either.components]
    assert all({i} in of_groups for i in range(3))
    assert either.full_drop > 0.9
    assert not both.is_degenerate


def owners(planted: Planted, component: dkn.Component) -> set[int]:
    """Of which planted sets a component has neurons."""
    neurons = {(int(layer), int(index)) for layer, index in component.neurons}
    return {i for i, members in enumerate(planted.sets) if neurons & members}


def test_the_null_repeats_the_search_and_finds_nothing(model: Any) -> None:
    config = CONFIG.set("filter.n_random_searches", 3)
    (either,) = results(model, [EITHER.fact], config)
    assert (either.null, either.null_draws, either.null_passing) == ("random search", 3, 0)
    assert either.null_p == 1 / 4
    (without,) = results(model, [EITHER.fact], CONFIG.set("filter.n_random_searches", 0))
    assert (without.null, without.null_draws) == (None, None)


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_a_result_keeps_the_interactions_that_the_search_measured(
    model: Any, positions: Any
) -> None:
    """Those of the public function, which asks by itself, on the fact's own prompt."""
    facts = [EITHER.fact, BOTH.fact]
    config = CONFIG.set("filter.positions", positions)
    for fact, found in zip(facts, results(model, facts, config), strict=True):
        asked = model, words_tokenizer(), fact, found.neurons
        (one,) = dkn.interactions(*asked, method="gradient", positions=positions)
        pairs = np.triu_indices(len(found.neurons), 1)
        assert found.pair_interactions.dtype == np.float32
        expected = one.matrix[pairs]
        assert np.abs(expected).max() > 1e-5
        # Where the answer is sure, they are hardly more than the rounding of ln p.
        np.testing.assert_allclose(found.pair_interactions, expected, rtol=1e-3, atol=1e-6)


def test_other_choices_measure_no_interactions(model: Any) -> None:
    config = CONFIG.set("topology.clustering", "ntc")
    (found,) = results(model, [EITHER.fact], config)
    assert found.components
    assert not len(found.pair_interactions)


def test_a_facts_groups_do_not_depend_on_its_chunk(model: Any) -> None:
    facts = [BOTH.fact, EITHER.fact]
    together = {r.fact_id: r for r in results(model, facts)}
    for fact in facts:
        (alone,) = results(model, [fact])
        other = together[fact.id]
        assert alone.dkn == other.dkn
        assert [c.neurons.tolist() for c in alone.components] == [
            c.neurons.tolist() for c in other.components
        ]


def test_searches_of_a_chunk_ask_together(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many backward passes for two facts with the same search as for one."""
    passes = []
    own = gates.row_gates

    def counted(*args: Any) -> Any:
        passes.append(args)
        return own(*args)

    monkeypatch.setattr(prompt_batch, "row_gates", counted)
    config = CONFIG.set("filter.n_random_searches", 0)
    results(model, [EITHER.fact], config)
    alone = len(passes)
    results(model, [EITHER.fact, dataclasses.replace(EITHER.fact, id="again")], config)
    assert alone
    assert len(passes) == 2 * alone


def test_a_run_that_goes_on_gives_the_same(model: Any, tmp_path: Path) -> None:
    config, facts = CONFIG.set("facts_per_chunk", 1), [EITHER.fact, BOTH.fact]
    find = functools.partial(dkn.find_dkns, model, words_tokenizer())
    whole = find(facts, config, tmp_path / "whole")
    find(facts[:1], config, tmp_path / "part")
    for one, other in zip(whole, find(facts, config, tmp_path / "part"), strict=True):
        assert one.dkn == other.dkn
        assert (one.null, one.null_passing, one.null_draws) == ("random search", 0, 1)
        assert (other.null_passing, other.null_draws) == (0, 1)
        np.testing.assert_array_equal(one.subset_probabilities, other.subset_probabilities)
        for mine, theirs in zip(one.components, other.components, strict=True):
            np.testing.assert_array_equal(mine.neurons, theirs.neurons)


def test_paraphrases_for_finding_are_used_and_not_judged_by(model: Any) -> None:
    fact = dataclasses.replace(EITHER.fact, paraphrases=(EITHER.fact.prompt,) * 3)
    (found,) = results(model, [fact], CONFIG.set({"selection.n_paraphrases": 2}))
    assert found.is_degenerate
    assert found.holds
    assert found.controls["paraphrases"].n == 1


@pytest.mark.parametrize("clustering", ["ntc", "covering"])
def test_weights_and_paraphrases_of_a_fact_are_read_once(
    model: Any, clustering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attribution, graph or search, and the result look at what was read for all of them."""
    rows: list[int] = []
    texts: list[str] = []
    rows_of, encoded = Mlp.w_out, encoding.encode_sequence

    def w_out(mlp: Mlp, index: Any) -> Any:
        if isinstance(index, list):  # attribution takes whole layers
            rows.extend(index)
        return rows_of(mlp, index)

    def encode_sequence(model: Any, tokenizer: Any, prompt: str, *rest: Any, **more: Any) -> Any:
        texts.append(prompt)
        return encoded(model, tokenizer, prompt, *rest, **more)

    monkeypatch.setattr(Mlp, "w_out", w_out)
    monkeypatch.setattr(encoding, "encode_sequence", encode_sequence)
    monkeypatch.setattr(stages, "encode_sequence", encode_sequence)
    others = tuple(f"w{i} {EITHER.fact.prompt}" for i in (30, 31))
    fact = dataclasses.replace(EITHER.fact, paraphrases=others)
    settings = {"selection.n_paraphrases": 1, "selection.paraphrase_share": 0}
    config = CONFIG.set(settings | {"topology.clustering": clustering})
    (found,) = results(model, [fact], config)
    assert found.components
    assert len(rows) == len(found.neurons)
    assert sorted(texts) == sorted([fact.prompt, *others])


def test_gradients_need_fixed_tokens() -> None:
    with pytest.raises(UserError, match="continuation must be 'clean'"):
        CONFIG.set({"facts.teacher_forced": False, "facts.continuation": "edited"})
