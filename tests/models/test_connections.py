"""What located neurons write and read, against the weights looked up by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dkn_engine as dkn
from dkn_engine.config import TopologyConfig
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from tests.support.tiny import WIDTH, tiny

# Out of order and with a layer twice, as descending scores give them.
NEURONS = np.array([[2, 39], [0, 3], [2, 0], [1, 7], [0, 12]], dtype=np.int32)


def mlp(name: str, model: Any, layer: int) -> Any:
    return model.transformer.h[layer].mlp if name == "gpt2" else model.model.layers[layer].mlp


def written(name: str, model: Any, layer: int, i: int) -> Any:
    m = mlp(name, model, layer)
    return m.c_proj.weight[i] if name == "gpt2" else m.down_proj.weight[:, i]


def read(name: str, model: Any, layer: int, i: int, which: str = "gate") -> Any:
    m = mlp(name, model, layer)
    if name == "gpt2":
        return m.c_fc.weight[:, i]
    if name == "phi3":
        return m.gate_up_proj.weight[i if which == "gate" else WIDTH + i]
    return (m.gate_proj if which == "gate" else m.up_proj).weight[i]


def rows(name: str, model: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    found = connection_rows(find_layout(model), NEURONS, TopologyConfig(**options))
    assert [x.shape for x in found] == [(5, 24)] * 2
    assert [x.dtype for x in found] == [np.float32] * 2
    return found


def by_hand(some: list[Tensor]) -> np.ndarray:
    return torch.stack(some).detach().float().numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3"])
def test_rows_are_those_of_the_weights(name: str) -> None:
    model = tiny(name, torch.float32)
    w_out, w_in = rows(name, model)
    pairs = NEURONS.tolist()
    np.testing.assert_array_equal(w_out, by_hand([written(name, model, l, i) for l, i in pairs]))
    np.testing.assert_array_equal(w_in, by_hand([read(name, model, l, i) for l, i in pairs]))


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_the_up_rows_can_be_read_instead(name: str) -> None:
    model = tiny(name, torch.float32)
    _, w_in = rows(name, model, input_weights="up")
    expected = [read(name, model, l, i, "up") for l, i in NEURONS.tolist()]
    np.testing.assert_array_equal(w_in, by_hand(expected))


def test_the_up_rows_of_a_plain_mlp_are_refused() -> None:
    with pytest.raises(dkn.UnsupportedModelError, match="input_weights='up'"):
        rows("gpt2", tiny("gpt2"), input_weights="up")


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_reversed_swaps_the_two_of_gated_models(name: str) -> None:
    model = tiny(name, torch.float32)
    forward, backward = rows(name, model), rows(name, model, direction="reversed")
    np.testing.assert_array_equal(backward[0], forward[1])
    np.testing.assert_array_equal(backward[1], forward[0])


def test_reversed_leaves_plain_models_alone() -> None:
    model = tiny("gpt2", torch.float32)
    forward, backward = rows("gpt2", model), rows("gpt2", model, direction="reversed")
    np.testing.assert_array_equal(backward, forward)


def test_a_hop_is_what_one_neuron_adds_to_the_next_ones_input() -> None:
    """By the model itself: the next gate's input moves by w(a, b) as a's activation grows by one.

    In a LLaMA without attention output and without a norm's division that is exact.
    """
    model = tiny("llama", torch.float64)
    a, b = np.array([0, 3]), np.array([1, 7])
    w_out, w_in = connection_rows(
        find_layout(model), np.stack([a, b]).astype(np.int32), TopologyConfig()
    )
    one = torch.zeros(1, WIDTH, dtype=torch.float64)
    one[0, 3] = 1.0
    added = model.model.layers[0].mlp.down_proj(one)
    moved = model.model.layers[1].mlp.gate_proj(added)[0, 7]
    assert float(w_out[0] @ w_in[1]) == pytest.approx(float(moved.detach()), rel=1e-5)


def test_no_neurons_have_no_rows() -> None:
    layout = find_layout(tiny("llama"))
    found = connection_rows(layout, np.empty((0, 2), np.int32), TopologyConfig())
    assert [x.shape for x in found] == [(0, 24)] * 2
