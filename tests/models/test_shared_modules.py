"""Decoders that run a part more than once a pass, or never: hooks cannot tell its uses apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dkn_engine as dkn
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from tests.models.test_threads import IDS, NEURONS, facts, logits
from tests.support.attribution_runs import attributed, fixed
from tests.support.guests import state
from tests.support.tiny import MASK_ID, relative_error, sequences, tiny
from tests.support.words import words_tokenizer

LLAMA = "model.layers"


def shares(path: str) -> Callable[[], Any]:
    """Layers 0 and 2 with one module at the path."""

    def build() -> Any:
        model = tiny("llama")
        layers = model.get_submodule(LLAMA)
        parent, _, leaf = path.rpartition(".")
        setattr(layers[2].get_submodule(parent), leaf, layers[0].get_submodule(path))
        return model

    return build


def one_layer_three_times() -> Any:
    model = tiny("llama")
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 3)
    return model


SHARED: dict[str, tuple[Callable[[], Any], str]] = {
    "layers": (one_layer_three_times, r"layers\[0\] and layers\[1\]"),
    "mlps": (shares("mlp"), r"layers\[0\].mlp.* and layers\[2\].mlp"),
    "down projections": (shares("mlp.down_proj"), "mlp.down_proj"),
    "gates": (shares("mlp.gate_proj"), "mlp.gate_proj"),
    "ups": (shares("mlp.up_proj"), "mlp.up_proj"),
}


@pytest.mark.parametrize("case", SHARED)
def test_modules_shared_between_layers_are_refused(case: str) -> None:
    build, where = SHARED[case]
    with pytest.raises(UnsupportedModelError, match=f"of its own.*{where}.*one module"):
        find_layout(build())


def test_a_projection_shared_crosswise_is_refused() -> None:
    """One layer's gate is another's up."""
    model = tiny("llama")
    layers = model.get_submodule(LLAMA)
    layers[2].mlp.up_proj = layers[0].mlp.gate_proj
    with pytest.raises(UnsupportedModelError, match=r"layers\[0\].*layers\[2\]"):
        find_layout(model)


class Looped(nn.Module):
    """A layer that runs another one twice, as decoders with recurrent depth do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.mlp = layer.mlp
        self.layer = layer
        self.attention_type = "full_attention"

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        once: Tensor = self.layer(hidden_states, **kwargs)
        twice: Tensor = self.layer(once, **kwargs)
        return twice


def looped() -> Any:
    model = tiny("llama")
    model.model.layers[1] = Looped(model.model.layers[1])
    return model


class Fused(nn.Module):
    """An MLP that reads its projections' weights in an operation of its own."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.silu(x @ self.gate_proj.weight.T) * (x @ self.up_proj.weight.T)
        out: Tensor = inner @ self.down_proj.weight.T
        return out


def fused() -> Any:
    model = tiny("llama")
    model.model.layers[1].mlp = Fused(model.model.layers[1].mlp)
    return model


def stack_twice() -> Any:
    """The whole stack runs a second time on what it gave."""
    model = tiny("llama")
    first = model.model.layers[0]
    forward = first.forward

    def again(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        once: Tensor = forward(hidden_states, **kwargs)
        for layer in model.model.layers[1:]:
            once = layer(once, **kwargs)
        return once

    first.forward = again
    return model


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "an MLP that runs twice": (looped, r"layers\[1\].mlp.down_proj .*once.*found 2"),
    "a fused MLP": (fused, r"layers\[1\].mlp.down_proj .*once.*found 0"),
    "layers that run twice": (stack_twice, r"layers\[1\] .*once.*found 2"),
}


@pytest.mark.parametrize("case", ODD)
def test_parts_that_run_other_than_once_a_pass_are_refused(case: str) -> None:
    build, words = ODD[case]
    model = build()
    before = state(model)
    for ask in (
        lambda: attribute_chunk(model, find_layout(model), sequences(), fixed(), mask_id=MASK_ID),
        lambda: dkn.find_dkns(model, words_tokenizer(), facts()),
        lambda: dkn.answer_probability(model, words_tokenizer(), facts(), suppress=NEURONS),
        lambda: dkn.answer_probability(
            model, words_tokenizer(), facts(), suppress=NEURONS, positions="all"
        ),
    ):
        with pytest.raises(UnsupportedModelError, match=words):
            ask()
    assert state(model) == before


def test_intervening_on_an_mlp_that_calls_no_projection_is_an_error() -> None:
    """At the first forward, and only where the changed layer is concerned."""
    model = fused()
    before, clean = state(model), logits(model)
    ways: Any = ("activations", "weights", "input_and_output_weights")
    for on in ways:
        with (
            pytest.raises(
                UnsupportedModelError, match=r"layers\[1\].mlp.down_proj .*once.*found 0"
            ),
            dkn.intervene(model, NEURONS, on=on),
        ):
            logits(model)
    with dkn.intervene(model, [[0, 3], [2, 5]]):
        assert not torch.equal(logits(model), clean)
    with dkn.intervene(model, NEURONS):
        pass  # no forward, so nothing that could go unchanged
    assert state(model) == before


class Copied(Fused):
    """A fused MLP that keeps a copy of its weights, in one piece."""

    def __init__(self, mlp: nn.Module, parts: tuple[str, ...]) -> None:
        super().__init__(mlp)
        self.kept = {name: getattr(self, name).weight.detach().clone() for name in parts}

    def forward(self, x: Tensor) -> Tensor:
        def run(name: str, inner: Tensor) -> Tensor:
            module: nn.Module = getattr(self, name)
            found: Tensor = inner @ self.kept[name].T if name in self.kept else module(inner)
            return found

        inner = nn.functional.silu(run("gate_proj", x)) * run("up_proj", x)
        return run("down_proj", inner)


@pytest.mark.parametrize(
    ("on", "parts", "where"),
    [
        ("weights", ("gate_proj", "up_proj", "down_proj"), "down_proj"),
        ("input_and_output_weights", ("gate_proj", "up_proj", "down_proj"), "down_proj"),
        ("input_and_output_weights", ("gate_proj", "up_proj"), "gate_proj"),
    ],
)
def test_scaling_weights_that_an_mlp_reads_past_its_projections_is_an_error(
    on: Any, parts: tuple[str, ...], where: str
) -> None:
    model = tiny("llama")
    model.model.layers[1].mlp = Copied(model.model.layers[1].mlp, parts)
    before, clean = state(model), logits(model)
    with (
        pytest.raises(UnsupportedModelError, match=rf"layers\[1\].mlp.{where} .*past it"),
        dkn.intervene(model, NEURONS, on=on),
    ):
        logits(model)
    with dkn.intervene(model, [[0, 3], [2, 5]], on=on):
        assert not torch.equal(logits(model), clean)
    assert state(model) == before


def test_scaling_rows_that_run_is_served_where_only_others_are_kept() -> None:
    model = tiny("llama")
    model.model.layers[1].mlp = Copied(model.model.layers[1].mlp, ("gate_proj", "up_proj"))
    clean = logits(model)
    with dkn.intervene(model, NEURONS, on="weights"):
        assert not torch.equal(logits(model), clean)


def test_a_looped_mlp_may_be_intervened_on_at_all_its_runs() -> None:
    model, ids = looped(), IDS
    with dkn.intervene(model, [[1, 17]], factor=0.0, on="weights"):
        expected = model(input_ids=ids).logits.detach().clone()
    with dkn.intervene(model, [[1, 17]], factor=0.0):
        assert torch.allclose(model(input_ids=ids).logits, expected)


def test_a_non_linearity_shared_between_layers_is_refused_only_at_sites_that_need_it() -> None:
    model = tiny("llama")
    expected = attributed("llama", model, fixed())
    for layer in model.model.layers:
        layer.mlp.act_fn = model.model.layers[0].mlp.act_fn
    assert relative_error(attributed("llama", model, fixed()).scores, expected.scores) == 0
    with pytest.raises(UnsupportedModelError, match=r"non-linearity of each layer .* runs once"):
        attributed("llama", model, fixed(site="pre"))


def test_intervening_at_a_non_linearity_that_layers_share_is_refused() -> None:
    """It would change every layer that runs it."""
    model = tiny("llama")
    layers = model.get_submodule(LLAMA)
    layers[2].mlp.act_fn = layers[1].mlp.act_fn
    before, clean = state(model), logits(model)
    for neurons in ([[1, 3]], [[2, 3]], [[0, 3]]):
        with (
            pytest.raises(UnsupportedModelError, match=r"non-linearity of each layer .* runs once"),
            dkn.intervene(model, neurons, site="pre"),
        ):
            pytest.fail("the block must not run")
    with dkn.intervene(model, [[1, 3]]):
        assert not torch.equal(logits(model), clean)
    assert state(model) == before


def test_tied_weights_of_different_modules_are_no_shared_module() -> None:
    """Attribution is by activations, which each module has for itself."""
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight
    untied = tiny("llama")
    for layer, own in zip(untied.model.layers, model.model.layers, strict=True):
        layer.mlp.down_proj.weight = nn.Parameter(own.mlp.down_proj.weight.detach().clone())
    found, expected = (attributed("llama", m, fixed()).scores for m in (model, untied))
    assert np.array_equal(found, expected)


def test_changing_weights_that_two_layers_share_is_refused() -> None:
    model = tiny("llama")
    layers = model.model.layers
    layers[2].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    before = state(model)
    with (
        pytest.raises(UnsupportedModelError, match=r"layers\[0\].mlp.down_proj.*layers\[2\]"),
        dkn.intervene(model, NEURONS, on="weights"),
    ):
        pass
    with dkn.intervene(model, [[1, 3]], on="weights"):
        pass
    assert state(model) == before


class InParts(nn.Module):
    """An MLP that computes the same in parts of its batch, or of its positions."""

    def __init__(self, mlp: Any, dim: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn, self.dim = mlp.act_fn, dim

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.act_fn(self.gate_proj(c)) * self.up_proj(c) for c in x.split(1, self.dim)]
        return torch.cat([self.down_proj(part) for part in parts], self.dim)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_projections_that_run_for_parts_of_a_batch_are_refused(dim: int) -> None:
    """Alone in a batch a fact would run once; its edits would act in every part."""
    model = tiny("llama")
    for layer in model.get_submodule(LLAMA):
        layer.mlp = InParts(layer.mlp, dim)
    several = next(f for f in facts() if len(f.answer.split()) > 1)
    asked: dict[str, Any] = {"facts": [several], "suppress": [[1, 3]], "positions": "answer"}
    with pytest.raises(UnsupportedModelError, match="run once in a forward pass"):
        dkn.answer_probability(model, words_tokenizer(), **asked)
    with pytest.raises(UnsupportedModelError, match="run once in a forward pass"):
        dkn.attribute(model, words_tokenizer(), facts())
    if dim == 0:  # One sequence is one part.
        asked["positions"] = "all"
        found, expected = (
            dkn.answer_probability(m, words_tokenizer(), **asked) for m in (model, tiny("llama"))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9)
