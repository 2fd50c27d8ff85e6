"""Interactions of neurons against brute force, and their estimate against finite differences."""

from __future__ import annotations

import functools
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import Edit, suppress
from dkn_engine.degeneracy.pair_interactions import Effects, estimated, exact
from dkn_engine.degeneracy.questions import AskedSlopes
from dkn_engine.models.layout import find_layout
from tests.models.test_guest import assert_unchanged, state
from tests.support.brute_force_edits import answer_probability
from tests.support.tiny import N_LAYERS, WIDTH, sequences, tiny
from tests.support.words import text, words_tokenizer

FAMILIES = ("gpt2", "llama", "gemma3", "opt", "gptj")
POSITIONS = ("answer", "answer_all", "all")
NEURONS = np.array([[0, 3], [2, 39], [1, 17], [1, 2]], dtype=np.int32)
MEANS = np.random.default_rng(3).standard_normal((N_LAYERS, WIDTH))
# GPT-J multiplies queries with keys in float32.
CLOSE = {"gptj": 1e-5}
# Their norms, or GPT-J's attention, compute in float32 whatever the model's dtype is.
SINGLE = ("llama", "gemma3", "gptj")


def facts() -> list[dkn.Fact]:
    return [
        dkn.Fact(f"f{b}", text(one.ids[: one.n_prompt]), text(one.targets))
        for b, one in enumerate(sequences())
    ]


def prompts_of(name: str, positions: str = "answer", dtype: torch.dtype = torch.float64) -> Prompts:
    model = tiny(name, dtype)
    return Prompts(model, find_layout(model), sequences(), positions=positions, warn=False)


def by_hand(name: str, model: Any, b: int, means: Any, positions: str) -> tuple[Any, Any]:
    """Effects and interactions of one sequence, a forward a token and suppression."""

    @functools.cache
    def drop(*which: int) -> float:
        p = [
            answer_probability(
                name, model, sequences()[b], suppress(NEURONS[list(some)], means), positions
            )
            for some in ((), which)
        ]
        return float(np.log(p[0]) - np.log(p[1]))

    n = len(NEURONS)
    effects, matrix = np.array([drop(i) for i in range(n)]), np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        matrix[i, j] = matrix[j, i] = drop(i, j) - drop(i) - drop(j)
    return effects, matrix


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_exact_interactions_are_those_of_one_forward_a_suppression(
    name: str, positions: Any
) -> None:
    model = tiny(name)
    before = state(model)
    means = MEANS if positions == "answer_all" else None
    given = {"positions": positions, "means": means}
    every = dkn.interactions(model, words_tokenizer(), facts(), NEURONS, **given)
    assert_unchanged(before, state(model))
    for b, one in enumerate(every):
        effects, matrix = by_hand(name, model, b, means, positions)
        np.testing.assert_allclose(one.effects, effects, atol=CLOSE.get(name, 1e-10))
        np.testing.assert_allclose(one.matrix, matrix, atol=4 * CLOSE.get(name, 1e-10))
        assert np.array_equal(one.neurons, NEURONS)
        assert one.fact_id == f"f{b}"
        assert one.method == "exact"


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_slopes_of_gates_are_those_of_finite_differences(name: str, positions: str) -> None:
    """Also between open and closed, and of answers of several tokens."""
    prompts = prompts_of(name, positions)
    closed = suppress(NEURONS, MEANS)
    gates = np.array([[1.0, 1, 1, 1], [0, 1, 1, 0], [0.5, 0.2, 1, 0]])
    step = 1e-2 if name in SINGLE else 1e-5

    # Central differences miss a sixth of the third derivative times step^2, and keep rounding
    # divided by the step.
    eps = torch.finfo(torch.float32 if name in SINGLE else torch.float64).eps
    tolerance = step**2 + 64 * eps / (2 * step)

    def log_p(b: int, settings: np.ndarray) -> np.ndarray:
        # Through the edits of activations: factor g, offset (1 - g) m.
        edits = [Edit(NEURONS, one, (1 - one) * closed.offset) for one in settings]
        logs: np.ndarray = np.log(prompts.probabilities(edits, [b])[:, 0])
        return logs

    steps = step * np.eye(len(NEURONS))
    for b in range(len(prompts)):
        ((value, slope),) = prompts.gate_slopes([AskedSlopes(b, closed, gates)])
        np.testing.assert_allclose(value, log_p(b, gates), rtol=0, atol=CLOSE.get(name, 1e-10))
        for r, setting in enumerate(gates):
            up, down = log_p(b, setting + steps), log_p(b, setting - steps)
            np.testing.assert_allclose(slope[r], (up - down) / (2 * step), rtol=0, atol=tolerance)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_slopes_of_several_answers_at_once_are_those_of_each(name: str, positions: str) -> None:
    """Each with neurons of its own, of which some are another's too, in any order."""
    prompts, rng = prompts_of(name, positions), np.random.default_rng(0)
    asked = [
        AskedSlopes(b, suppress(NEURONS[own], MEANS), rng.random((n, len(own))))
        for b, own, n in [(1, [2, 0], 3), (0, [1, 2, 3], 2), (1, [3], 1), (0, [], 2)]
    ]
    together = prompts.gate_slopes(asked)
    for one, (value, slope) in zip(asked, together, strict=True):
        ((own_value, own_slope),) = prompts.gate_slopes([one])
        np.testing.assert_allclose(value, own_value, atol=CLOSE.get(name, 1e-10))
        np.testing.assert_allclose(slope, own_slope, atol=CLOSE.get(name, 1e-10))


def test_closed_gates_of_different_answers_that_disagree() -> None:
    prompts, gates = prompts_of("gpt2"), np.ones((1, len(NEURONS)))
    asked = [AskedSlopes(0, suppress(NEURONS, m), gates) for m in (None, MEANS)]
    with pytest.raises(ValueError, match="must make the same of a neuron"):
        prompts.gate_slopes(asked)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_the_estimate_has_exact_effects_and_a_symmetric_matrix(name: str) -> None:
    given = (tiny(name), words_tokenizer(), facts(), NEURONS)
    for one, estimate in zip(
        dkn.interactions(*given), dkn.interactions(*given, method="gradient"), strict=True
    ):
        np.testing.assert_allclose(estimate.effects, one.effects, atol=CLOSE.get(name, 1e-10))
        assert np.array_equal(estimate.matrix, estimate.matrix.T)
        assert (np.diag(estimate.matrix) == 0).all()
        assert estimate.method == "gradient"


def estimate_of(prompts: Prompts, *args: Any) -> Effects:
    (one,) = together([estimated(prompts, *args)])
    assert not isinstance(one, dkn.FactError)
    return one


def test_an_estimates_error_is_of_third_order_in_what_suppression_changes() -> None:
    """Interactions are of second order: towards activations close by, the estimate is exact.

    In one layer: across layers a closed gate also cuts off what the lower neuron gives the upper.
    """
    prompts, one_layer = prompts_of("gpt2"), np.array([[1, 17], [1, 2], [1, 30]], dtype=np.int32)
    (b,) = [b for b, one in enumerate(prompts.sequences) if len(one.targets) == 1][:1]
    clean = prompts.first_activations()[b]
    errors, sizes = [], []
    for share in (0.02, 0.01):
        (one,) = together([exact(prompts, b, one_layer, clean * (1 - share))])
        assert not isinstance(one, dkn.FactError)
        _, estimate = estimate_of(prompts, b, one_layer, clean * (1 - share))
        errors.append(np.abs(one[1] - estimate).max())
        sizes.append(np.abs(one[1]).max())
    assert sizes[1] / sizes[0] == pytest.approx(1 / 4, rel=0.1)
    assert errors[1] / errors[0] == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_estimate_what_float64_does(dtype: torch.dtype) -> None:
    wide, narrow = prompts_of("llama"), prompts_of("llama", dtype=dtype)
    effects, matrix = estimate_of(wide, 1, NEURONS)
    effects_16, matrix_16 = estimate_of(narrow, 1, NEURONS)
    tolerance = 1e-5 if dtype == torch.float32 else 64 * torch.finfo(dtype).eps
    np.testing.assert_allclose(effects_16, effects, atol=tolerance)
    np.testing.assert_allclose(matrix_16, matrix, atol=tolerance)


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_few_neurons(method: Any) -> None:
    model = tiny("llama")
    for n in (0, 1):
        some = [[1, 2]][:n]
        (one, *_) = dkn.interactions(model, words_tokenizer(), facts(), some, method=method)
        assert one.matrix.shape == (n, n)
        assert one.effects.shape == (n,)
        assert not one.matrix.any()
    by_id = dkn.interactions(model, words_tokenizer(), facts(), {"f1": NEURONS}, method=method)
    assert [len(one.neurons) for one in by_id] == [0, 4, 0]


@pytest.mark.parametrize("method", ["exact", "gradient"])
def test_neurons_are_refused_in_words(method: Any) -> None:
    model, tokenizer = tiny("llama"), words_tokenizer()
    with pytest.raises(ValueError, match=r"neurons must be below layer 3 and index 40; got \(3, "):
        dkn.interactions(model, tokenizer, facts(), [[3, 0]], method=method)
    with pytest.raises(ValueError, match=r"distinct; got \(1, 2\) twice"):
        dkn.interactions(model, tokenizer, facts(), [[1, 2], [1, 2]], method=method)
    with pytest.raises(dkn.UserError, match="neurons must be neurons"):
        dkn.interactions(model, tokenizer, facts(), {"g": NEURONS}, method=method)


def test_words_are_refused_by_name() -> None:
    model, tokenizer = tiny("llama"), words_tokenizer()
    with pytest.raises(dkn.UserError, match="method must be one of exact, gradient; got 'both'"):
        dkn.interactions(model, tokenizer, facts(), NEURONS, method="both")  # type: ignore[arg-type]
    with pytest.raises(dkn.UserError, match="positions must be one of"):
        dkn.interactions(model, tokenizer, facts(), NEURONS, positions="last")  # type: ignore[arg-type]


def test_no_gradient_passes_an_edited_models_own_tokens() -> None:
    config = dkn.FactsConfig(teacher_forced=False, continuation="edited")
    given = (tiny("llama"), words_tokenizer(), facts(), NEURONS)
    with pytest.raises(dkn.FactError, match="gradients need answers of fixed tokens"):
        dkn.interactions(*given, method="gradient", facts_config=config)
    assert len(dkn.interactions(*given, facts_config=config)) == len(facts())
