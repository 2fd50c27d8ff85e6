"""What located neurons write and read, against what the models themselves compute."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dkn_engine as dkn
from dkn_engine.config import TopologyConfig
from dkn_engine.models.connections import connection_rows
from dkn_engine.models.layout import find_layout
from tests.support.tiny import FAMILIES, WIDTH, act_of, down_of, norm_of, tiny

# Out of order and with a layer twice, as descending scores give them.
NEURONS = np.array([[2, 39], [0, 3], [2, 0], [1, 7], [0, 12]], dtype=np.int32)
IDS = torch.arange(3, 9)[None]


def rows(model: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    found = connection_rows(find_layout(model), NEURONS, TopologyConfig(**options))
    assert [x.shape for x in found] == [(5, 24)] * 2
    assert [x.dtype for x in found] == [np.float32] * 2
    return found


def written(name: str, model: Any, layer: int, i: int) -> Tensor:
    """How the down projection's output moves with the neuron's activation."""
    down, one = down_of(name, model, layer), torch.zeros(1, 1, WIDTH)
    one[..., i] = 1
    moved: Tensor = torch.func.jvp(down, (torch.zeros_like(one),), (one,))[1]
    return moved.flatten()


def read(name: str, model: Any, layer: int, i: int, of: str = "gate") -> Tensor | None:
    """The gradient of what the neuron gets with respect to what its MLP reads, by a forward.

    What it gets is the input of its non-linearity (``gate``), or its activation where the
    non-linearity gives 1 (``up``): None if that does not depend on what the MLP reads.
    """
    seen: dict[str, Tensor] = {}

    def begin(hidden: Tensor) -> Tensor:
        seen["read"] = hidden.detach().requires_grad_()
        return seen["read"]

    def at_act(_module: Any, args: tuple[Tensor]) -> None:
        seen["gate"] = args[0]

    def at_down(_module: Any, args: tuple[Tensor]) -> None:
        seen["up"] = args[0]

    norm, act = norm_of(name, model, layer), act_of(name, model, layer)
    with contextlib.ExitStack() as hooks:
        if norm is None:
            mlp = model.get_submodule(FAMILIES[name].down.format(layer).rpartition(".")[0])
            hooks.callback(mlp.register_forward_pre_hook(lambda _m, a: begin(a[0])).remove)
        else:
            hooks.callback(norm.register_forward_hook(lambda _m, _a, out: begin(out)).remove)
        hooks.callback(act.register_forward_pre_hook(at_act).remove)
        if of == "up":
            ones = act.register_forward_hook(lambda _m, _a, out: torch.ones_like(out))
            hooks.callback(ones.remove)
        down = down_of(name, model, layer)
        hooks.callback(down.register_forward_pre_hook(at_down).remove)
        model(input_ids=IDS)
    if not seen[of].requires_grad:
        return None
    (gradient,) = torch.autograd.grad(seen[of].reshape(-1, WIDTH)[-1, i], seen["read"])
    return gradient.reshape(-1, gradient.shape[-1])[-1]


def is_gated(name: str, model: Any) -> bool:
    return read(name, model, 0, 0, "up") is not None


def stacked(vectors: list[Any]) -> np.ndarray:
    return torch.stack(vectors).detach().numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_what_neurons_write_and_read(name: str) -> None:
    model = tiny(name, torch.float32)
    w_out, w_in = rows(model)
    pairs = NEURONS.tolist()
    np.testing.assert_array_equal(w_out, stacked([written(name, model, l, i) for l, i in pairs]))
    np.testing.assert_array_equal(w_in, stacked([read(name, model, l, i) for l, i in pairs]))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_up_rows_can_be_read_instead_where_there_are_any(name: str) -> None:
    model = tiny(name, torch.float32)
    if not is_gated(name, model):
        with pytest.raises(dkn.UnsupportedModelError, match="input_weights='up'"):
            rows(model, input_weights="up")
        return
    _, w_in = rows(model, input_weights="up")
    expected = [read(name, model, l, i, "up") for l, i in NEURONS.tolist()]
    np.testing.assert_array_equal(w_in, stacked(expected))


@pytest.mark.parametrize("name", FAMILIES)
def test_reversed_swaps_the_two_of_gated_models_alone(name: str) -> None:
    model = tiny(name, torch.float32)
    forward, backward = rows(model), rows(model, direction="reversed")
    expected = forward[::-1] if is_gated(name, model) else forward
    np.testing.assert_array_equal(backward, expected)


def test_families_of_both_kinds_are_tried() -> None:
    gated = {name for name in FAMILIES if is_gated(name, tiny(name, torch.float32))}
    assert {"llama", "phi3"} <= gated
    assert {"gpt2", "nemotron"} <= set(FAMILIES) - gated


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
