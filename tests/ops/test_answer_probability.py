"""``answer_probability`` against softmax and autograd, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dkn_engine.errors import BackendError
from dkn_engine.ops.answer_probability import Head, answer_probability, token_logits
from dkn_engine.ops.answer_probability import Tail as Apart
from tests.support.values import DTYPES, normal, step, wide

BACKENDS = ("reference",)
SHAPES = [(1, 1, 1), (7, 63, 7), (63, 7, 331), (331, 63, 63)]  # rows, d, V


class Tail(nn.Module):
    """A norm and a projection whose result is scaled and capped, as the heads of some models."""

    def __init__(self, d: int, v: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(v, d, dtype=dtype, seed=3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return 5 * torch.tanh(x @ self.weight.T / 3)


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tail, Tensor, Tensor]:
    n, d, v = shape
    return Tail(d, v, dtype), normal(n, d, dtype=dtype, seed=1), torch.arange(n) * 5 % v


def row_by_row(
    tail: Tail, hidden: Tensor, targets: Tensor, objective: str
) -> tuple[Tensor, Tensor]:
    values, grads = [], []
    for row, target in zip(hidden, targets.tolist(), strict=True):
        x = row.detach().requires_grad_(True)
        logits = tail(x[None])[0].to(wide(hidden.dtype))
        p = torch.softmax(logits, dim=-1)[target]
        value = {"probability": p, "log_probability": p.log(), "logit": logits[target]}[objective]
        values.append(value.detach())
        grads.append(torch.autograd.grad(value, x)[0])
    return torch.stack(values), torch.stack(grads)


@pytest.mark.parametrize("objective", ["probability", "log_probability", "logit"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_rows_and_gradients_equal_softmax(
    backend: str, shape: tuple[int, int, int], objective: str
) -> None:
    tail, hidden, targets = inputs(shape, torch.float64)
    value, gradient = answer_probability(
        tail, hidden, targets, objective=objective, gradient=True, backend=backend
    )
    expected = row_by_row(tail, hidden, targets, objective)
    assert value.shape == targets.shape
    assert gradient is not None
    assert (value - expected[0]).abs().max() < 1e-13
    assert (gradient - expected[1]).abs().max() < 1e-12 * max(1.0, float(expected[1].abs().max()))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("block", [3, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_logits_of_tokens_are_those_of_the_tail(
    backend: str, shape: tuple[int, int, int], block: int, k: int
) -> None:
    tail, hidden, _ = inputs(shape, torch.float64)
    tokens = torch.arange(shape[0] * k).view(-1, k) * 7 % shape[2]
    expected = torch.stack([tail(x[None])[0, own] for x, own in zip(hidden, tokens, strict=True)])
    weight, norm = tail.weight, lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    apart = Apart(tail, lambda: Head(norm, weight, scale=5 / 3, softcap=5.0))
    for some in (tail, apart, Apart(tail, lambda: "it cannot be")):
        found = token_logits(some, hidden, tokens, block=block, backend=backend)
        assert found.shape == (shape[0], k)
        assert (found - expected).abs().max() < 1e-13


def test_logits_of_tokens_have_at_least_float32() -> None:
    tail, hidden, _ = inputs((5, 7, 31), torch.bfloat16)
    found = token_logits(tail, hidden, torch.tensor([[1, 2]] * 5))
    assert found.dtype == torch.float32
    assert torch.equal(found, tail(hidden)[:, 1:3].float())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shorter_dtypes_are_no_worse_than_torch_in_them(
    backend: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """At most twice the error of softmax over the same logits, and a rounding of the result."""
    tail, hidden, targets = inputs(shape, dtype)
    value, gradient = answer_probability(
        tail, hidden, targets, objective="probability", gradient=True, backend=backend
    )
    assert gradient is not None
    assert (value.dtype, gradient.dtype) == (wide(dtype), dtype)
    exact = row_by_row(Tail(*shape[1:], dtype).double(), hidden.double(), targets, "probability")
    plain = row_by_row(tail, hidden, targets, "probability")
    for found, torchs, true, kind in zip(
        (value, gradient), plain, exact, (wide(dtype), dtype), strict=True
    ):
        worst = (torchs.double() - true).abs().max() + step(kind) * true.abs().max()
        assert (found.double() - true).abs().max() <= 2 * worst


@pytest.mark.parametrize("block", [1, 3, 64, 1000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_of_rows_give_the_same(backend: str, block: int) -> None:
    tail, hidden, targets = inputs((67, 7, 31), torch.float64)
    options: Any = {"objective": "probability", "gradient": True, "backend": backend}
    value, gradient = answer_probability(tail, hidden, targets, block=block, **options)
    whole, whole_gradient = answer_probability(tail, hidden, targets, block=67, **options)
    assert gradient is not None
    assert whole_gradient is not None
    assert (value - whole).abs().max() < 1e-15
    assert (gradient - whole_gradient).abs().max() < 1e-15


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_callers_graph_and_grad_mode_are_left_alone(backend: str, gradient: bool) -> None:
    tail, hidden, targets = inputs((5, 7, 31), torch.float64)
    hidden = hidden.requires_grad_(True) * 2
    with torch.set_grad_enabled(not gradient):
        value, found = answer_probability(
            tail, hidden, targets, objective="probability", gradient=gradient, backend=backend
        )
        assert torch.is_grad_enabled() is not gradient
    assert not value.requires_grad
    assert (found is not None) is gradient
    assert hidden.grad_fn is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_an_empty_result(backend: str) -> None:
    tail, hidden, targets = inputs((0, 7, 31), torch.float32)
    value, gradient = answer_probability(
        tail, hidden, targets, objective="probability", gradient=True, backend=backend
    )
    assert value.shape == (0,)
    assert gradient is not None
    assert gradient.shape == (0, 7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_too_small_for_float32_keep_their_logarithm(backend: str) -> None:
    hidden, targets = torch.tensor([[300.0, 0.0]]), torch.tensor([1])
    value, gradient = answer_probability(
        lambda x: x, hidden, targets, objective="log_probability", gradient=True, backend=backend
    )
    assert value.tolist() == [-300.0]
    assert gradient is not None
    assert gradient.tolist() == [[-1.0, 1.0]]


def test_targets_of_another_length_are_refused() -> None:
    tail, hidden, targets = inputs((5, 7, 31), torch.float32)
    with pytest.raises(ValueError, match=r"targets must be \[5\]; got \(4,\)"):
        answer_probability(tail, hidden, targets[:4], objective="probability", gradient=False)


def test_an_unknown_backend_is_an_error_that_names_what_there_is() -> None:
    tail, hidden, targets = inputs((5, 7, 31), torch.float32)
    with pytest.raises(BackendError, match=r"answer_probability: backend \'abacus\' .* reference"):
        answer_probability(
            tail, hidden, targets, objective="probability", gradient=False, backend="abacus"
        )
