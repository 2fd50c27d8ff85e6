"""The closed form of ``answer_probability`` against the reference and autograd in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dkn_engine.ops.answer_probability import Head, Tail, answer_probability, blocked, reference
from dkn_engine.ops.answer_probability.tail import behind_norm
from tests.support.values import normal, step

SHAPES = [(1, 1, 1), (7, 63, 7), (3, 7, 1200), (331, 31, 1100)]  # rows, d, V


def rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def head_of(d: int, v: int, dtype: torch.dtype, kind: str) -> Head:
    weight = normal(v, d, dtype=dtype, seed=3)
    if kind == "plain":
        return Head(rms_norm, weight)
    return Head(rms_norm, weight, normal(v, dtype=dtype, seed=4), scale=0.7, softcap=5.0)


def inputs(n: int, d: int, v: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return normal(n, d, dtype=dtype, seed=1), torch.arange(n) * 5 % v


@pytest.mark.parametrize("objective", ["probability", "log_probability", "logit"])
@pytest.mark.parametrize("kind", ["plain", "bias, scale and cap"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(shape: tuple[int, int, int], kind: str, objective: str) -> None:
    n, d, v = shape
    head = head_of(d, v, torch.float64, kind)
    hidden, targets = inputs(n, d, v, torch.float64)
    expected = reference.answer_probability(head.logits, hidden, targets, objective, True, 64)
    assert expected[1] is not None
    for size in (1 << 20, 100):  # in one block of the vocabulary, and in several
        value, gradient = blocked.answer_probability(head, hidden, targets, objective, True, size)
        assert gradient is not None
        assert value.shape == expected[0].shape
        assert gradient.shape == expected[1].shape
        torch.testing.assert_close(value, expected[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-10, atol=1e-13)
        alone, none = blocked.answer_probability(head, hidden, targets, objective, False, size)
        assert none is None
        assert torch.equal(alone, value)


@pytest.mark.parametrize("kind", ["plain", "bias, scale and cap"])
def test_float32_is_no_worse_than_the_reference(kind: str) -> None:
    """At most twice the reference's own error, and a rounding of the result."""
    n, d, v = 63, 331, 1536
    head, exact_head = (head_of(d, v, t, kind) for t in (torch.float32, torch.float64))
    hidden, targets = inputs(n, d, v, torch.float32)
    exact = reference.answer_probability(
        exact_head.logits, hidden.double(), targets, "probability", True, 64
    )
    plain = reference.answer_probability(head.logits, hidden, targets, "probability", True, 64)
    found = blocked.answer_probability(head, hidden, targets, "probability", True)
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        assert ours is not None
        assert theirs is not None
        assert true is not None
        assert ours.dtype == torch.float32
        allowed = 2 * (theirs - true).norm() + torch.finfo(torch.float32).eps * true.norm()
        assert (ours - true).norm() <= allowed


def test_gradient_keeps_its_digits_where_p_is_near_one() -> None:
    """1 - p is 4e-9 here, which float32 cannot hold beside p."""
    weight = torch.tensor([[20.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    hidden = torch.tensor([[1.0, 0.5]])
    head = Head(lambda x: x, weight)
    _, found = blocked.answer_probability(head, hidden, torch.tensor([0]), "probability", True)
    wide = Head(lambda x: x, weight.double())
    _, exact = reference.answer_probability(
        wide.logits, hidden.double(), torch.tensor([0]), "probability", True, 64
    )
    assert found is not None
    assert exact is not None
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_no_rows() -> None:
    head = head_of(3, 7, torch.float64, "plain")
    hidden, targets = torch.empty(0, 3, dtype=torch.float64), torch.empty(0, dtype=torch.int64)
    value, gradient = blocked.answer_probability(head, hidden, targets, "probability", True)
    assert value.shape == (0,)
    assert gradient is not None
    assert gradient.shape == (0, 3)


def test_auto_takes_it_only_where_the_tail_comes_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = blocked.answer_probability

    def counted(*args: object) -> tuple[Tensor, Tensor | None]:
        calls.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(blocked, "answer_probability", counted)
    head = head_of(5, 7, torch.float64, "plain")
    hidden, targets = inputs(4, 5, 7, torch.float64)
    expected = None
    for tail, backend, n_calls in (
        (Tail(head.logits, lambda: head), "auto", 1),
        (Tail(head.logits, lambda: "a reason"), "auto", 1),
        (Tail(head.logits, lambda: head), "reference", 1),
        (head.logits, "auto", 1),
    ):
        value, _ = answer_probability(
            tail, hidden, targets, objective="probability", gradient=False, backend=backend
        )
        assert len(calls) == n_calls
        expected = value if expected is None else expected
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "bias, scale and cap"])
def test_a_logit_in_short_types_is_no_worse_than_the_references(
    kind: str, dtype: torch.dtype
) -> None:
    """The form that GPUs take too, where the kernels leave a logit to it."""

    def no_kernel(*_: object) -> tuple[Tensor, Tensor]:
        raise AssertionError("a logit needs no kernel")

    n, d, v = 7, 64, 331
    head, exact_head = (head_of(d, v, t, kind) for t in (dtype, torch.float64))
    exact_head = replace(
        exact_head,
        weight=head.weight.double(),
        bias=None if head.bias is None else head.bias.double(),
    )
    hidden, targets = inputs(n, d, v, dtype)
    found = behind_norm(no_kernel, head, hidden, targets, "logit", True)
    plain = reference.answer_probability(head.logits, hidden, targets, "logit", True, 64)
    exact = reference.answer_probability(
        exact_head.logits, hidden.double(), targets, "logit", True, 64
    )
    for mine, theirs, true in zip(found, plain, exact, strict=True):
        assert mine is not None
        assert theirs is not None
        assert true is not None
        assert mine.dtype == theirs.dtype
        worst = (theirs.double() - true).abs().max() + step(dtype) * true.abs().max()
        assert (mine.double() - true).abs().max() <= worst
