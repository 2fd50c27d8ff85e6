"""Layers that only add their MLP's output, told from those that do more to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dkn_engine.attribution.residual_shortcut import ResidualStream, adds
from dkn_engine.forward import row_check as check
from tests.support.attribution_runs import LEFT, S, attributed, fixed
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import N_LAYERS, relative_error, sequences, tiny, with_long_stream

Make = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
ADDED: dict[str, Make] = {
    "sum": lambda rest, part: rest + part,
    "turned around": lambda rest, part: part + rest,
    "a leaf": lambda rest, part: torch.ones(3).requires_grad_() + part,
    "twice": lambda rest, part: rest + (part + rest),
    "itself": lambda rest, part: part,
    "in place": lambda rest, part: rest.add_(part),
}
NOT_ADDED: dict[str, Make] = {
    "difference": lambda rest, part: rest - part,
    "scaled": lambda rest, part: rest + 0.5 * part,
    "alpha": lambda rest, part: torch.add(rest, part, alpha=2),
    "doubled": lambda rest, part: part + part,
    "with what follows from it": lambda rest, part: part + part.tanh(),
    "with what follows from both": lambda rest, part: (rest + part) + rest * part,
    "with what has no record": lambda rest, part: part + part.detach().tanh(),
    "normed": lambda rest, part: rest + part / part.norm(),
    "another dtype": lambda rest, part: rest.float() + part.double(),
    "in a list": lambda rest, part: torch.stack([rest, part]).sum(0),
    "nothing of it": lambda rest, part: rest * 3,
    "no record": lambda rest, part: (rest + part).detach(),
}


def _parts() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    rest = x * 2
    return rest, rest.exp() * 1.5


@pytest.mark.parametrize("name", ADDED)
def test_a_sum_with_what_came_before_is_known_as_one(name: str) -> None:
    rest, part = _parts()
    step = part.grad_fn
    assert adds(ADDED[name](rest, part), step)


@pytest.mark.parametrize("name", NOT_ADDED)
def test_anything_else_is_not(name: str) -> None:
    rest, part = _parts()
    step = part.grad_fn
    assert not adds(NOT_ADDED[name](rest, part), step)


def test_without_a_record_nothing_is_known() -> None:
    rest, part = torch.ones(3), torch.ones(3)
    assert not adds(rest + part, part.grad_fn)
    assert not adds(rest.requires_grad_() + part, part.grad_fn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_rest_gives_back_what_the_layer_would(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    before = torch.randn(4, 7, dtype=dtype)
    mlp, points = torch.randn(4, 7, dtype=dtype) / 4, torch.randn(2, 3, 7, dtype=dtype)
    rest = ResidualStream.empty(before, n_layers=2)
    context = torch.tensor([0, 2])
    assert rest.plus(context, 1, points) is None
    rest.note(torch.tensor([2, 3]), 1, (before + mlp)[2:], mlp[2:])
    assert rest.plus(context, 1, points) is None  # one of two
    rest.note(torch.tensor([0]), 1, (before + mlp)[:1], mlp[:1])
    assert rest.plus(context, 0, points) is None
    found = rest.plus(context, 1, points)
    assert found is not None
    assert found.dtype == dtype
    expected = before[context].double().unsqueeze(1) + points.double()
    # A rounding of the layer's output, one of the difference and one of the sum.
    eps = float(torch.finfo(dtype).eps)
    size = (before + mlp).abs()[context].unsqueeze(1).double() + expected.abs()
    assert bool(((found.double() - expected).abs() <= 1.5 * eps * size).all())


def test_a_rest_that_is_little_of_the_output_is_not_noted() -> None:
    before, mlp = torch.ones(3, 4), torch.tensor([[0.5], [3.0], [float("nan")]]).expand(3, 4)
    rest = ResidualStream.empty(before, n_layers=1)
    rest.note(torch.arange(3), 0, before + mlp, mlp)
    assert rest.known.flatten().tolist() == [True, False, False]


def _emerged(found: Any) -> float:
    """Layer runs in which points emerged, a context."""
    contexts = sum(len(s.targets) for s in sequences())
    climbs = S * N_LAYERS * (N_LAYERS - 1) // 2 + N_LAYERS
    return float(found.row_layers / contexts - climbs)


CHANGES: dict[str, tuple[str, Callable[..., Any], int]] = {
    "none": ("mlp", lambda _m, _a, _out: None, 0),
    "a new tensor": ("mlp", lambda _m, _a, out: out.clone(), 1),
    "half the output": ("mlp", lambda _m, _a, out: out / 2, 1),
    "more than linear": ("mlp", lambda _m, _a, out: out + out.tanh(), 1),
    "with its input": ("mlp", lambda _m, args, out: out + args[0], 0),
    "added to the layer": ("", lambda _m, _a, out: out + 1, 1),
    "after the layer": ("", lambda _m, _a, out: out * 1.5, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_points_emerge_by_running_the_layer_where_it_does_more(change: str) -> None:
    """And the scores are those of the model as it is."""
    place, hook, runs = CHANGES[change]
    model = with_long_stream(tiny("llama"))
    for layer in range(N_LAYERS):
        name = f"model.layers.{layer}.{place}".rstrip(".")
        model.get_submodule(name).register_forward_hook(hook)
    found = attributed("llama", model, fixed())
    assert found.path == "sweep"
    assert _emerged(found) == runs * N_LAYERS
    oracle = BruteForce("llama", model, "post")
    for scores, one in zip(found.scores, sequences(), strict=True):
        assert relative_error(scores, oracle.scores(one, LEFT).mean(0)) < 1e-10


@pytest.mark.parametrize("tried", [True, False])
def test_an_output_changed_in_place_means_blocks(
    monkeypatch: pytest.MonkeyPatch, tried: bool
) -> None:
    """What is kept of it would be the layer's output."""
    model = tiny("llama")
    for layer in range(N_LAYERS):
        mlp = model.get_submodule(f"model.layers.{layer}.mlp")
        mlp.register_forward_hook(lambda _m, args, out: out.add_(args[0]))
    if not tried:
        monkeypatch.setattr(check, "is_plain", lambda _layout: True)
    found = attributed("llama", model, fixed())
    assert found.path == "blocks"
    oracle = BruteForce("llama", model, "post")
    for scores, one in zip(found.scores, sequences(), strict=True):
        assert relative_error(scores, oracle.scores(one, LEFT).mean(0)) < 1e-10
