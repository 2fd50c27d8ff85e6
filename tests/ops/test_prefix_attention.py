"""``prefix_attention`` against torch's attention, row by row."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dkn_engine.errors import BackendError
from dkn_engine.ops.prefix_attention import prefix_attention
from tests.support.values import DTYPES, normal, step

BACKENDS = ("reference",)


class Shape(NamedTuple):
    contexts: int
    heads: int
    kv_heads: int
    rows: int
    prefix: int
    width: int
    value_width: int


SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1),
    Shape(2, 4, 2, 7, 63, 8, 8),  # grouped queries
    Shape(3, 6, 1, 1, 7, 5, 3),  # one head of keys; values of another width
    Shape(1, 2, 2, 63, 331, 7, 7),
    Shape(2, 3, 3, 7, 0, 4, 4),  # nothing in front
]
EMPTY = [Shape(0, 2, 1, 3, 5, 4, 4), Shape(2, 2, 1, 0, 5, 4, 4)]
SCALING = 0.4


def inputs(shape: Shape, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    c, h, kv, r, t, d, dv = shape
    sizes = [(c, h, r, d), (c, kv, r, d), (c, kv, r, dv), (c, kv, t, d), (c, kv, t, dv)]
    tensors = [normal(*size, dtype=dtype, seed=i) for i, size in enumerate(sizes)]
    # Each context sees another part of its prefix, as with padding and windows; some see none.
    seen = (torch.arange(t) % 3 != torch.arange(c)[:, None] % 4) & (torch.arange(c)[:, None] != 2)
    return (*tensors, seen)


def row_by_row(given: tuple[Tensor, ...], softcap: float | None) -> Tensor:
    """Every row alone, over the keys that it sees, by torch; in the dtype given."""
    query, key, value, prefix_key, prefix_value, seen = given
    group = query.shape[1] // key.shape[1]
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    for c, h, r in torch.cartesian_prod(*(torch.arange(n) for n in query.shape[:3])).tolist():
        keys = torch.cat([prefix_key[c, h // group, seen[c]], key[c, h // group, r : r + 1]])
        values = torch.cat([prefix_value[c, h // group, seen[c]], value[c, h // group, r : r + 1]])
        q = query[c, h, r : r + 1]
        if softcap is None:
            out[c, h, r] = scaled_dot_product_attention(
                q[None], keys[None], values[None], scale=SCALING
            )[0, 0]
        else:
            scores = softcap * torch.tanh(q @ keys.T * SCALING / softcap)
            out[c, h, r] = (torch.softmax(scores, dim=-1) @ values)[0]
    return out


def attend(given: tuple[Tensor, ...], softcap: float | None, backend: str) -> Tensor:
    return prefix_attention(*given, scaling=SCALING, softcap=softcap, backend=backend)


def gradients(out: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of the rows' own query, key and value."""
    weights = normal(*out.shape, seed=9).to(out.dtype)
    return torch.autograd.grad((out * weights).sum(), given[:3])


def differentiable(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (*(x.requires_grad_(True) for x in given[:3]), *given[3:])


@pytest.mark.parametrize("softcap", [None, 0.7], ids=["plain", "capped"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_rows_and_their_gradients_equal_torchs(
    backend: str, shape: Shape, softcap: float | None
) -> None:
    given = differentiable(inputs(shape))
    found, expected = attend(given, softcap, backend), row_by_row(given, softcap)
    assert found.shape == expected.shape
    # Sums of at most 331 terms near 1 in float64.
    assert (found - expected).abs().max() < 1e-13
    for a, b in zip(gradients(found, given), gradients(expected, given), strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("softcap", [None, 0.7], ids=["plain", "capped"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES[1:3], SHAPES[4]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shorter_dtypes_are_no_worse_than_torch_in_them(
    backend: str, shape: Shape, dtype: torch.dtype, softcap: float | None
) -> None:
    """At most twice torch's own error against float64, and one rounding of the result."""
    short = inputs(shape, dtype)
    exact = row_by_row(tuple(x.double() if x.is_floating_point() else x for x in short), softcap)
    found, plain = attend(short, softcap, backend), row_by_row(short, softcap)
    assert found.dtype == dtype
    worst = (plain.double() - exact).abs().max() + step(dtype) * exact.abs().max()
    assert (found.double() - exact).abs().max() <= 2 * worst


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_and_no_contexts_give_an_empty_result(backend: str, shape: Shape) -> None:
    found = attend(inputs(shape), None, backend)
    assert found.shape == (shape.contexts, shape.heads, shape.rows, shape.value_width)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_sees_no_prefix_returns_its_own_value(backend: str) -> None:
    query, key, value, *prefix, seen = inputs(Shape(2, 4, 2, 3, 5, 4, 4))
    found = attend((query, key, value, *prefix, torch.zeros_like(seen)), None, backend)
    assert torch.equal(found, value.repeat_interleave(2, dim=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_hidden_does_not_matter(backend: str) -> None:
    """Padding may hold anything finite."""
    query, key, value, prefix_key, prefix_value, seen = inputs(SHAPES[1])
    hidden = ~seen[:, None, :, None]
    other = (prefix_key.masked_fill(hidden, 1e30), prefix_value.masked_fill(hidden, 7.0))
    found = attend((query, key, value, *other, seen), None, backend)
    assert torch.equal(found, attend(inputs(SHAPES[1]), None, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_do_not_overflow(backend: str, dtype: torch.dtype) -> None:
    query, key, *rest = inputs(SHAPES[1], dtype)
    found = attend((300 * query, 300 * key, *rest), None, backend)
    assert found.isfinite().all()


def test_heads_that_do_not_divide_are_refused() -> None:
    query, _, value, *prefix = inputs(Shape(1, 3, 3, 2, 2, 4, 4))
    key: Any = normal(1, 2, 2, 4)
    with pytest.raises(ValueError, match="query heads must be a multiple of 2; got 3"):
        attend((query, key, value, *prefix), None, "auto")


def test_an_unknown_backend_is_an_error_that_names_what_there_is() -> None:
    with pytest.raises(BackendError, match=r"prefix_attention: backend \'abacus\' .* reference"):
        attend(inputs(SHAPES[0]), None, "abacus")
