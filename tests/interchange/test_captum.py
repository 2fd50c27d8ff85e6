"""The class with captum's names against captum's own, and refusals of what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients as Captums
from torch import Tensor, nn

from dkn_engine.compat import LayerIntegratedGradients
from dkn_engine.errors import UserError
from tests.support.guests import Boom, broken, mixed_model, state
from tests.support.tiny import FAMILIES, MASK_ID, act_of, down_of, relative_error, tiny

# Ours with itself: the same float64 numbers summed in another order.
FLOAT64 = 1e-10
# captum rounds the weights of its rules to float32, half an eps each, and terms of both signs may
# leave a sum ten times smaller than they are.
CAPTUM = 5 * float(torch.finfo(torch.float32).eps)
# Some families round to float32 inside, too: norms, rotations, eager attention.
ROUNDED = 10 * CAPTUM
METHODS = ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid"]
IDS = torch.tensor([[5, 9, 11, 17], [23, 8, 40, 7]])
BASELINES = torch.full_like(IDS, MASK_ID)
TARGETS = torch.tensor([13, 30])


def last_probabilities(model: Any) -> Callable[..., Tensor]:
    def forward(ids: Tensor, *more: Tensor) -> Tensor:
        found = torch.softmax(model(input_ids=ids, use_cache=False).logits[:, -1], dim=-1)
        return found * more[0].unsqueeze(1) if more else found

    return forward


def both(model: Any, layer: nn.Module, **options: Any) -> tuple[Any, Any]:
    """Ours and captum's own."""
    forward = last_probabilities(model)
    options = {"inputs": IDS, "baselines": BASELINES, "target": TARGETS, "n_steps": 5, **options}
    init = {"multiply_by_inputs": options.pop("multiply_by_inputs", True)}
    return tuple(
        kind(forward, layer, **init).attribute(**options)
        for kind in (LayerIntegratedGradients, Captums)
    )


def tolerance(name: str) -> float:
    return CAPTUM if name in {"gpt2", "gpt_neox", "starcoder2", "phi", "nemotron"} else ROUNDED


# OPT flattens its batch before the MLP; there captum has no delta.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "opt"])
def test_the_down_projections_input_equals_captums(name: str) -> None:
    model = tiny(name)
    (found, delta), (expected, captums_delta) = both(
        model,
        down_of(name, model, 1),
        attribute_to_layer_input=True,
        return_convergence_delta=True,
    )
    assert relative_error(found, expected) < tolerance(name)
    scale = expected.flatten(1).norm(dim=1) * expected[0].numel() ** 0.5
    assert bool(((delta - captums_delta).abs() <= tolerance(name) * scale).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("part", ["down", "act", "up"])
def test_every_rule_and_side_of_a_layer_equals_captums(
    part: str, of_input: bool, method: str
) -> None:
    model = tiny("llama")
    up = model.get_submodule("model.layers.1.mlp.up_proj")
    layer = {"down": down_of("llama", model, 1), "act": act_of("llama", model, 1), "up": up}[part]
    found, expected = both(model, layer, attribute_to_layer_input=of_input, method=method)
    assert relative_error(found, expected) < ROUNDED


@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_internal_batches_change_nothing(rows: int, of_input: bool) -> None:
    model = tiny("gpt2")
    layer = down_of("gpt2", model, 0)
    options: Any = {"attribute_to_layer_input": of_input}
    whole, _ = both(model, layer, **options)
    ours = LayerIntegratedGradients(last_probabilities(model), layer)
    cut = ours.attribute(IDS, BASELINES, TARGETS, None, 5, internal_batch_size=rows, **options)
    assert relative_error(cut, whole) < FLOAT64


@pytest.mark.parametrize(
    "options",
    [
        {"baselines": None},
        {"baselines": 3},
        {"baselines": BASELINES[:1]},
        {"target": 13},
        {"target": [13, 30]},
        {"target": (13,)},
        {"target": TARGETS[:1]},
        {"additional_forward_args": torch.tensor([2.0, 0.5])},
        {"additional_forward_args": (torch.tensor([2.0, 0.5]),)},
        {"multiply_by_inputs": False},
        {"n_steps": 1},
        {"inputs": IDS[:1], "baselines": BASELINES[:1], "target": 30},
        {"inputs": (IDS,)},
        {"baselines": (BASELINES,)},
        {"inputs": (IDS,), "baselines": (3,)},
        {"target": torch.tensor(13)},
        {"target": (np.int64(13),)},
        {"target": [(13,), (30,)]},
        {"target": [(-1,), (np.int64(2),)]},
        {"n_steps": np.int64(4)},
        {"n_steps": torch.tensor(4)},
        {"internal_batch_size": np.int32(4)},
        {"internal_batch_size": torch.tensor(4)},
        {"grad_kwargs": {}},
    ],
    ids=str,
)
def test_every_argument_means_what_it_means_in_captum(options: dict[str, Any]) -> None:
    model = tiny("gpt2")
    layer = down_of("gpt2", model, 1)
    found, expected = both(model, layer, attribute_to_layer_input=True, **options)
    assert relative_error(found, expected) < CAPTUM


@pytest.mark.parametrize("target", [(2, 13), [(2, 13), (0, 30)], None])
def test_targets_of_other_outputs_equal_captums(target: Any) -> None:
    model = tiny("gpt2")
    layer = down_of("gpt2", model, 1)

    def forward(ids: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits if target else logits[:, -1, 13]

    found, expected = (
        kind(forward, layer).attribute(
            IDS, BASELINES, target, n_steps=3, attribute_to_layer_input=True
        )
        for kind in (LayerIntegratedGradients, Captums)
    )
    assert relative_error(found, expected) < CAPTUM


@pytest.mark.parametrize(
    ("ours", "captums"),
    [
        ({"target": np.int64(13)}, {"target": 13}),
        ({"target": [np.int64(13), torch.tensor(30)]}, {"target": [13, 30]}),
        ({"baselines": np.int64(3)}, {"baselines": 3}),
        ({"baselines": torch.tensor(3)}, {"baselines": 3}),
    ],
    ids=str,
)
def test_numbers_of_numpy_and_torch_are_numbers(
    ours: dict[str, Any], captums: dict[str, Any]
) -> None:
    """Also where captum takes Python's alone."""
    model = tiny("gpt2")
    layer = down_of("gpt2", model, 1)
    found, _ = both(model, layer, **captums)
    options = {"baselines": BASELINES, "target": TARGETS, "n_steps": 5, **ours}
    made = LayerIntegratedGradients(last_probabilities(model), layer).attribute(IDS, **options)
    assert torch.equal(made, found)


def test_a_further_argument_without_an_axis_is_for_all_rows() -> None:
    model = tiny("gpt2")
    layer = down_of("gpt2", model, 1)

    def forward(ids: Tensor, factor: Tensor) -> Tensor:
        return last_probabilities(model)(ids) * factor

    found, expected = (
        kind(forward, layer).attribute(
            IDS, BASELINES, TARGETS, torch.tensor(2.0), 3, attribute_to_layer_input=True
        )
        for kind in (LayerIntegratedGradients, Captums)
    )
    assert relative_error(found, expected) < CAPTUM


@pytest.mark.parametrize("delta", [True, False])
def test_a_list_of_one_layer_gives_a_list_of_one(delta: bool) -> None:
    model = tiny("gpt2")
    layers = [down_of("gpt2", model, 1)]
    found, expected = (
        kind(last_probabilities(model), layers, []).attribute(
            IDS, BASELINES, TARGETS, n_steps=3, return_convergence_delta=delta
        )
        for kind in (LayerIntegratedGradients, Captums)
    )
    if delta:
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)
        found, expected = found[0], expected[0]
    assert isinstance(found, list)
    assert len(found) == len(expected) == 1
    assert relative_error(found[0], expected[0]) < CAPTUM


@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("part", [down_of, act_of])
@pytest.mark.parametrize("shape", [(2, 4), (1, 4), (2, 1)], ids=str)
def test_a_flattened_batch_keeps_its_shape(
    shape: tuple[int, int], part: Callable[..., nn.Module], of_input: bool
) -> None:
    model = tiny("opt")
    ids = IDS[: shape[0], : shape[1]]
    options: dict[str, Any] = {
        "inputs": ids,
        "baselines": torch.full_like(ids, MASK_ID),
        "target": TARGETS[: shape[0]],
        "attribute_to_layer_input": of_input,
    }
    found, expected = both(model, part("opt", model, 1), **options)
    assert found.shape[0] == ids.numel()
    assert relative_error(found, expected) < CAPTUM
    ours = LayerIntegratedGradients(last_probabilities(model), part("opt", model, 1))
    for size in (1, 3):
        cut = ours.attribute(**options, n_steps=5, internal_batch_size=size * len(ids))
        assert relative_error(cut, found) < FLOAT64
    _, delta = ours.attribute(**options, n_steps=5, return_convergence_delta=True)
    forward, at = last_probabilities(model), torch.arange(len(ids))
    change = forward(ids) - forward(options["baselines"])
    sums = expected.unflatten(0, shape).flatten(1).sum(1)
    torch.testing.assert_close(
        delta, sums - change.detach()[at, options["target"]], rtol=0, atol=1e-6
    )


def test_a_model_stands_for_its_probabilities_and_is_left_as_it_was() -> None:
    model = mixed_model("gpt2")
    layer = down_of("gpt2", model, 1)
    other = tiny("gpt2")
    expected = Captums(last_probabilities(other), down_of("gpt2", other, 1))
    before = state(model)
    options: dict[str, Any] = {"n_steps": 4, "attribute_to_layer_input": True}
    found = LayerIntegratedGradients(model, layer).attribute(IDS, BASELINES, TARGETS, **options)
    assert state(model) == before
    assert relative_error(found, expected.attribute(IDS, BASELINES, TARGETS, **options)) < CAPTUM
    with broken(down_of("gpt2", model, 2)), pytest.raises(Boom):
        LayerIntegratedGradients(model, layer).attribute(IDS, BASELINES, TARGETS)
    assert state(model)["hooks"] == before["hooks"]


def test_a_gradient_of_half_precision_is_summed_in_float32() -> None:
    model = tiny("gpt2", torch.bfloat16)
    exact = tiny("gpt2").to(torch.bfloat16).to(torch.float64)
    layers = [down_of("gpt2", m, 1) for m in (model, exact)]
    found, rounded = both(model, layers[0], attribute_to_layer_input=True, n_steps=20)
    expected, _ = both(exact, layers[1], attribute_to_layer_input=True, n_steps=20)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 2 * relative_error(rounded.float(), expected)


def test_the_class_says_what_captums_says() -> None:
    layer = nn.Linear(2, 2)
    for multiply in (True, False):
        pair = [
            k(nn.Identity(), layer, None, multiply) for k in (LayerIntegratedGradients, Captums)
        ]
        assert pair[0].multiplies_by_inputs == pair[1].multiplies_by_inputs == multiply
        assert pair[0].has_convergence_delta() == pair[1].has_convergence_delta()


INIT: list[tuple[dict[str, Any], str]] = [
    ({"forward_func": 3}, "forward_func must be a function or a model; got int"),
    ({"layer": [nn.Identity(), nn.Identity()]}, "layer must be one module; a list"),
    ({"layer": []}, "layer must be one module; a list"),
    ({"layer": (nn.Identity(),)}, "layer must be one module; a list"),
    ({"layer": "mlp"}, "layer must be a module of the model; got str"),
    ({"device_ids": [0, 1]}, "DataParallel is not supported; got [0, 1]"),
]
ATTRIBUTE: list[tuple[dict[str, Any], str]] = [
    ({"inputs": (IDS, IDS)}, "inputs must be one tensor with a row an example"),
    (
        {"baselines": (BASELINES, BASELINES)},
        "baselines must be None, a number or one tensor; got tuple",
    ),
    ({"baselines": True}, "baselines must be None, a number or one tensor; got bool"),
    ({"target": True}, "target must be an integer"),
    ({"target": np.True_}, "target must be an integer"),
    ({"target": (True,)}, "target must index an output [61]; got (True,)"),
    ({"target": [True, False]}, "target must be an integer"),
    ({"target": [(True,), (False,)]}, "target must index an output [61]; got (True,)"),
    ({"target": torch.tensor(True)}, "target must be an integer"),
    ({"target": torch.tensor([True, False])}, "target must be an integer"),
    ({"target": [(1,), (61,)]}, "target must index an output [61]; got (61,)"),
    ({"target": [(1,), "a"]}, "target must index an output [61]; got 'a'"),
    ({"target": [(1,)]}, "one integer for each of 2 examples"),
    ({"n_steps": True}, "n_steps must be a positive integer; got True"),
    ({"n_steps": torch.tensor([5])}, "n_steps must be a positive integer; got tensor([5])"),
    ({"baselines": BASELINES[:, :2]}, "the shape of inputs, [2, 4], or one row; got [2, 2]"),
    ({"target": None}, "target must say which output is meant; forward_func returns [2, 61]"),
    ({"target": 61}, "target must index an output [61]; got 61"),
    ({"target": (1, 2)}, "target must index an output [61]; got (1, 2)"),
    (
        {"target": [1, 2, 3]},
        "for each of 2 examples with outputs [2, V]; got [1, 2, 3]",
    ),
    ({"target": [(1, 2), (2, 3)]}, "target must index an output [61]; got (1, 2)"),
    ({"target": torch.tensor([0.5, 1])}, "target must be an integer, a tuple of them, a list"),
    ({"target": [1, 99]}, "target must be from 0 to 60; got [1, 99]"),
    ({"method": "simpson"}, "method must be one of gausslegendre, riemann_left"),
    ({"method": "riemann_left", "n_steps": 1}, "n_steps must be at least 2 with method="),
    ({"n_steps": 0}, "n_steps must be a positive integer; got 0"),
    ({"n_steps": 2.5}, "n_steps must be a positive integer; got 2.5"),
    ({"internal_batch_size": 0}, "internal_batch_size must be a positive integer; got 0"),
    ({"grad_kwargs": {"is_grads_batched": True}}, "grad_kwargs must be None or empty"),
    (
        {"additional_forward_args": torch.ones(3)},
        "tensors must have 2 rows, one an example; got [3]",
    ),
]


@pytest.mark.parametrize(("changes", "message"), INIT)
def test_what_the_class_does_not_take_is_said(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"forward_func": nn.Identity(), "layer": nn.Identity()}
    with pytest.raises(UserError) as caught:
        LayerIntegratedGradients(**(arguments | changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), ATTRIBUTE)
def test_what_attribute_does_not_take_is_said(changes: dict[str, Any], message: str) -> None:
    model = tiny("gpt2")
    ours = LayerIntegratedGradients(last_probabilities(model), down_of("gpt2", model, 1))
    arguments: dict[str, Any] = {
        "inputs": IDS,
        "baselines": BASELINES,
        "target": TARGETS,
        "n_steps": 3,
    } | changes
    with pytest.raises(UserError) as caught:
        ours.attribute(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layers_that_cannot_be_patched_are_said() -> None:
    model = tiny("gpt2")
    forward = last_probabilities(model)
    with pytest.raises(UserError, match="Identity ran 0 times"):
        LayerIntegratedGradients(forward, nn.Identity()).attribute(IDS, BASELINES, 1)
    attention = model.get_submodule("transformer.h.0.attn")
    with pytest.raises(UserError, match="GPT2Attention has tuple"):
        LayerIntegratedGradients(forward, attention).attribute(IDS, BASELINES, 1)
    with pytest.raises(
        UserError, match=r"forward_func must return one tensor .* got CausalLMOutput"
    ):
        LayerIntegratedGradients(
            lambda ids: model(input_ids=ids), down_of("gpt2", model, 1)
        ).attribute(IDS, BASELINES, 1)


def test_rows_that_are_not_the_examples_are_said() -> None:
    """Four positions are a multiple of two examples, but do not grow with them."""
    table = nn.Linear(3, 5, dtype=torch.float64)

    def forward(ids: Tensor) -> Tensor:
        positions = table(torch.ones(ids.shape[1], 3, dtype=torch.float64))  # [T, 5]
        out: Tensor = (ids.double().unsqueeze(-1) * positions).sum(1)
        return out

    with pytest.raises(UserError, match=r"activation must be one tensor with 24 rows for 6 steps"):
        LayerIntegratedGradients(forward, table).attribute(IDS, BASELINES, 1, n_steps=6)
