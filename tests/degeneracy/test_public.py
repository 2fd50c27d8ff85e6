"""``answer_probability`` and ``intervene`` as a user calls them; the model is a guest."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dkn_engine as dkn
from dkn_engine.degeneracy.edits import combine, enhance, nothing, suppress
from dkn_engine.interchange import transformer_lens_names
from tests.support.brute_force_edits import answer_probability, edited
from tests.support.guests import Boom, broken, mixed_model, state
from tests.support.tiny import N_LAYERS, WIDTH, down_of, sequences, tiny
from tests.support.words import text, words_tokenizer

NEURONS = np.array([[0, 3], [1, 17], [1, 4], [2, 39]], dtype=np.int32)
OTHERS = np.array([[0, 8], [2, 1]], dtype=np.int64)
IDS = torch.tensor([[5, 9, 11, 30, 7]])
GPT2_AND_OTHERS = ("gpt2", "llama", "phi3", "opt")


def facts() -> list[dkn.Fact]:
    found = []
    for b, one in enumerate(sequences()):
        prompt, answer = text(one.ids[: one.n_prompt]), text(one.targets)
        found.append(dkn.Fact(f"f{b}", prompt, answer))
    return found


def means() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((N_LAYERS, WIDTH))


# --- answer_probability ---


@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_suppress_enhance_and_means_equal_brute_force(name: str, positions: Any) -> None:
    model = tiny(name)
    edit = combine(suppress(NEURONS, means()), enhance(OTHERS, 3.0))
    general = name == "opt" and positions == "answer"
    warns = pytest.warns(UserWarning, match="full forward passes")
    with warns if general else contextlib.nullcontext():
        found = dkn.answer_probability(
            model,
            words_tokenizer(),
            facts(),
            suppress=NEURONS,
            enhance=OTHERS,
            factor=3.0,
            means=means(),
            positions=positions,
        )
    expected = [answer_probability(name, model, one, edit, positions) for one in sequences()]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_nothing_changed_is_the_clean_probability() -> None:
    model = tiny("llama")
    clean = [answer_probability("llama", model, one, nothing()) for one in sequences()]
    nothings: tuple[Any, ...] = (None, [], {}, {"f0": None})
    for suppressed in nothings:
        found = dkn.answer_probability(model, words_tokenizer(), facts(), suppress=suppressed)
        np.testing.assert_allclose(found, clean, rtol=1e-10)


def test_neurons_by_fact_id_and_more_facts_than_a_chunk() -> None:
    model, many = tiny("llama"), [f for i in range(7) for f in facts()]
    many = [dkn.Fact(f"{f.id}-{i}", f.prompt, f.answer) for i, f in enumerate(many)]
    by_id = {many[0].id: NEURONS, many[10].id: OTHERS.tolist()}
    found = dkn.answer_probability(model, words_tokenizer(), many, suppress=by_id)
    for i, fact in enumerate(many):
        edit = suppress(by_id.get(fact.id, []))
        expected = answer_probability("llama", model, sequences()[i % 3], edit)
        assert found[i] == pytest.approx(expected, rel=1e-10)


def test_full_forwards_are_announced_once() -> None:
    many = [dkn.Fact(f"{f.id}-{i}", f.prompt, f.answer) for i in range(4) for f in facts()]
    with pytest.warns(UserWarning, match="full forward passes") as caught:
        dkn.answer_probability(tiny("opt"), words_tokenizer(), many)
    assert len(caught) == 1


def test_no_facts_give_no_probabilities() -> None:
    assert dkn.answer_probability(tiny("llama"), words_tokenizer(), []).shape == (0,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"positions": "last"}, dkn.UserError, "positions must be one of answer"),
        ({"backend": "cuda", "positions": "all"}, dkn.UserError, "backend must be one of auto"),
        ({"backend": "native"}, dkn.BackendError, "'native' is not available"),
        ({"suppress": [[0, 1], [0, 1]]}, ValueError, "distinct"),
        ({"suppress": [[0.0, 1.0]]}, TypeError, "integers"),
        ({"suppress": {"f9": [[0, 1]]}}, dkn.UserError, "suppress must .* key 'f9', .* 'f0'"),
        ({"enhance": {"f0": [[0, 1]], "f9": []}}, dkn.UserError, "enhance must be .* key 'f9'"),
        (
            {"suppress": dkn.interchange.transformer_lens_names([[0, 1]])},
            dkn.UserError,
            "suppress must be neurons .* key 'blocks.0.mlp.hook_post'",
        ),
        ({"suppress": {"f0": [[N_LAYERS, 0]]}}, ValueError, f"below layer {N_LAYERS}"),
        ({"enhance": [[0, WIDTH]]}, ValueError, f"index {WIDTH}"),
        ({"suppress": [[0, 1]], "enhance": [[0, 1]]}, ValueError, "distinct"),
        ({"means": np.zeros((1, 2))}, ValueError, r"means must be \[3, 40\]; got \[1, 2\]"),
    ],
    ids=[
        "positions",
        "backend",
        "no-such-kernel",
        "duplicate",
        "float",
        "no-facts-id",
        "no-facts-id-enhanced",
        "names",
        "layer",
        "index",
        "both",
        "means",
    ],
)
def test_wrong_arguments_are_named(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        dkn.answer_probability(tiny("llama"), words_tokenizer(), facts(), **options)


def test_a_fact_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(dkn.FactError, match="'broken'"):
        dkn.answer_probability(
            tiny("llama"), words_tokenizer(), [*facts(), dkn.Fact("broken", "w5", " ")]
        )


# --- intervene ---


def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits.detach().clone()
    return found


@pytest.mark.parametrize("on", ["activations", "weights"])
@pytest.mark.parametrize("factor", [0.0, -1.5, 2.0])
@pytest.mark.parametrize("name", GPT2_AND_OTHERS)
def test_intervening_equals_brute_force_at_all_positions(name: str, factor: float, on: Any) -> None:
    model = tiny(name)
    clean = logits(model)
    with edited(name, model, enhance(NEURONS, factor), range(IDS.shape[1])):
        expected = logits(model)
    with dkn.intervene(model, NEURONS, factor=factor, on=on):
        found = logits(model)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(expected, clean)
    assert torch.equal(logits(model), clean)


def test_intervening_with_means_replaces_activations() -> None:
    model = tiny("llama")
    with edited("llama", model, suppress(NEURONS, means()), range(IDS.shape[1])):
        expected = logits(model)
    with dkn.intervene(model, NEURONS, means=means()):
        torch.testing.assert_close(logits(model), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("on", ["activations", "weights"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_model_is_bit_equal_after_intervening(name: str, on: Any, raises: bool) -> None:
    model = mixed_model(name)
    before = state(model)
    with contextlib.suppress(Boom), dkn.intervene(model, NEURONS, factor=0.3, on=on):
        logits(model)
        if raises:
            raise Boom
    assert state(model) == before


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("on", ["activations", "weights"])
def test_intervening_leaves_the_callers_grad_mode(mode: Any, on: Any) -> None:
    model = tiny("llama")
    before = state(model)
    with mode():
        outside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with dkn.intervene(model, NEURONS, factor=0.5, on=on):
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == outside
            model(input_ids=IDS)
    assert state(model) == before


def test_gradients_flow_through_an_intervention() -> None:
    model = tiny("llama")
    with dkn.intervene(model, NEURONS, factor=0.5):
        model(input_ids=IDS).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("on", ["activations", "weights"])
def test_no_neurons_change_nothing(on: Any) -> None:
    model = tiny("llama")
    clean = logits(model)
    with dkn.intervene(model, [], on=on):
        assert torch.equal(logits(model), clean)


def test_interventions_nest() -> None:
    model = tiny("gpt2")
    before = state(model)
    with dkn.intervene(model, NEURONS, factor=2.0, on="weights"):
        with dkn.intervene(model, NEURONS, factor=0.5, on="weights"):
            inner = logits(model)
        assert not torch.allclose(logits(model), inner)
    torch.testing.assert_close(inner, logits(model), rtol=1e-12, atol=1e-12)
    assert state(model) == before


@pytest.mark.parametrize(
    ("neurons", "options", "error", "message"),
    [
        ([[0, 1], [0, 1]], {}, ValueError, "twice"),
        ([[N_LAYERS, 0]], {}, ValueError, "below layer"),
        ([[0.5, 1.0]], {}, TypeError, "integers"),
        (
            [[0, 1]],
            {"on": "biases"},
            dkn.UserError,
            "on must be one of activations, weights, output_weights, input_and_output_weights",
        ),
        ([[0, 1]], {"on": "weights", "means": means()}, ValueError, "means must be None"),
        ([[0, 1]], {"means": means()[:1]}, ValueError, "means must be"),
        (dkn.interchange.transformer_lens_names([[0, 1]]), {}, TypeError, "integers"),
    ],
    ids=["duplicate", "outside", "float", "on", "means-on-weights", "means-shape", "names"],
)
def test_wrong_interventions_are_refused(
    neurons: Any, options: Any, error: Any, message: str
) -> None:
    with (
        pytest.raises(error, match=message),
        dkn.intervene(tiny("llama"), neurons, **options),
    ):
        pytest.fail("the block must not run")


# --- the model is a guest ---


@pytest.mark.parametrize("on", ["activations", "weights"])
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_an_intervention_of_the_callers_holds_while_asking(positions: Any, on: Any) -> None:
    """As do hooks of any kind: by rows and by full forwards."""
    model = tiny("llama")
    clean = dkn.answer_probability(model, words_tokenizer(), facts(), suppress=NEURONS)
    with dkn.intervene(model, OTHERS, factor=3.0, on=on):
        found = dkn.answer_probability(
            model, words_tokenizer(), facts(), suppress=NEURONS, positions=positions
        )
        edit = suppress(NEURONS)
        expected = [answer_probability("llama", model, s, edit, positions) for s in sequences()]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert not np.isclose(found, clean, rtol=1e-3).any()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_asking_leaves_the_model_alone(positions: Any, mode: Any) -> None:
    model = mixed_model("llama")
    before = state(model)
    with mode():
        dkn.answer_probability(
            model, words_tokenizer(), facts(), suppress=NEURONS, positions=positions
        )
    assert state(model) == before


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_an_error_inside_a_layer_leaves_the_model_alone(positions: Any) -> None:
    model = mixed_model("llama")
    before = state(model)
    with broken(down_of("llama", model, 1)), pytest.raises(Boom):
        dkn.answer_probability(
            model, words_tokenizer(), facts(), suppress=NEURONS, positions=positions
        )
    assert state(model) == before


@pytest.mark.parametrize("kind", ["hook points", "fact ids"])
def test_neurons_by_name_are_refused_where_they_are_taken_as_a_table(kind: str) -> None:
    model = tiny("llama")
    named: Any = transformer_lens_names(NEURONS) if kind == "hook points" else {"f0": NEURONS}
    message = (
        r"^neurons must be integers \[n, 2\], columns layer and index; got a dict with the key "
    )
    with (
        pytest.raises(TypeError, match=message + f"{next(iter(named))!r}.*other libraries"),
        dkn.intervene(model, named),
    ):
        pass
