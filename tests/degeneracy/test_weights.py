"""Neurons scaled in the weights: by hand, one number after another; nothing is left behind."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.degeneracy.edits import enhance, suppress
from dkn_engine.degeneracy.weights import scaled_neurons
from dkn_engine.layout import find_layout
from tests.degeneracy.brute_force import edited
from tests.guests import Boom, mixed_model, state
from tests.tiny import FAMILIES, N_LAYERS, WIDTH, down_of, tiny

NEURONS = np.array([[0, 3], [0, 39], [1, 0], [2, 7], [2, 8]], dtype=np.int32)
IDS = torch.tensor([[5, 9, 30, 12, 41, 7]])
# Where the gate (or the only incoming projection) of layouts that differ in it is.
INCOMING = {
    "llama": "gate_proj",
    "phi3": "gate_up_proj",  # fused
    "nemotron": "up_proj",  # no gate
    "gpt2": "c_fc",
    "gpt_neox": "dense_h_to_4h",
    "opt": "fc1",
}
CONV1D = {"gpt2"}  # keeps weights [in, out]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def by_hand(name: str, model: Any, factor: float) -> Any:
    """A copy with one number of one weight multiplied after another."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for layer, i in NEURONS.tolist():
            down: Any = down_of(name, changed, layer)
            path = FAMILIES[name].down.format(layer).rsplit(".", 1)[0]
            into: Any = changed.get_submodule(f"{path}.{INCOMING[name]}")
            for k in range(24):
                if name in CONV1D:
                    into.weight[k, i] *= factor
                    down.weight[i, k] *= factor
                else:
                    into.weight[i, k] *= factor
                    down.weight[k, i] *= factor
            if into.bias is not None:
                into.bias[i] *= factor
    return changed


@pytest.mark.parametrize("factor", [0.0, 2.0, -0.5])
@pytest.mark.parametrize("name", INCOMING)
def test_rows_in_and_out_are_scaled(name: str, factor: float) -> None:
    model = tiny(name)
    before = state(model)
    expected = by_hand(name, model, factor)
    with scaled_neurons(find_layout(model), NEURONS, factor):
        assert state(model)["weights"] == state(expected)["weights"]
        torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=0)
    assert state(model) == before


@pytest.mark.parametrize("name", INCOMING)
def test_zero_is_suppression_everywhere_and_two_is_not_enhancement(name: str) -> None:
    model = tiny(name)
    layout, everywhere = find_layout(model), range(IDS.shape[1])
    for factor, edit in ((0.0, suppress(NEURONS)), (2.0, enhance(NEURONS, 2.0))):
        with edited(name, model, edit, everywhere):
            on_values = logits(model)
        with scaled_neurons(layout, NEURONS, factor):
            on_weights = logits(model)
        assert torch.allclose(on_values, on_weights, rtol=1e-10, atol=1e-10) == (factor == 0)


def test_many_random_draws_leave_the_weights_bit_equal() -> None:
    # 1/3 is not a power of two: dividing again would not give the same bits.
    model = mixed_model("llama").float()
    before, layout, random = state(model), find_layout(model), np.random.default_rng(0)
    for _ in range(50):
        flat = random.choice(N_LAYERS * WIDTH, 11, replace=False)
        drawn = np.stack(np.unravel_index(flat, (N_LAYERS, WIDTH)), axis=1).astype(np.int32)
        with scaled_neurons(layout, drawn, 1 / 3):
            pass
    assert state(model) == before


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_weights_come_back_when_the_block_raises(mode: Any) -> None:
    model = mixed_model("gpt2")
    before = state(model)
    with mode(), contextlib.suppress(Boom), scaled_neurons(find_layout(model), NEURONS, 0.0):
        raise Boom
    assert state(model) == before


def test_neurons_outside_the_model_are_refused_before_anything_changes() -> None:
    model = tiny("llama")
    before = state(model)
    outside = np.array([[0, 1], [N_LAYERS, 0]], dtype=np.int32)
    with (
        pytest.raises(ValueError, match=rf"got \({N_LAYERS}, 0\)"),
        scaled_neurons(find_layout(model), outside, 0.0),
    ):
        pass
    assert state(model) == before
