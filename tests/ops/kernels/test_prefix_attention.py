"""``prefix_attention``'s kernels, forward and backward, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dkn_engine.errors import BackendError
from dkn_engine.ops.prefix_attention import prefix_attention
from tests.ops.kernels.cases import (
    DTYPES,
    Case,
    converted,
    orders,
    pairs,
    require_no_worse,
    size,
    spelled,
)
from tests.ops.kernels.cases import values as make
from tests.support.values import normal

pytestmark = pytest.mark.usefixtures("poison")

CASES = pairs(
    contexts=(1, size(2, 3)),
    heads=((1, 1), (4, 2), (size(3, 6), 1)),  # of queries, of keys
    rows=(1, 7, size(31, 63), size(66, 80)),
    prefix=(0, 1, 7, size(32, 64), size(67, 131)),
    width=((1, 1), (16, 16), (63, 63), (6, 3), (80, 80)),  # of keys, of values
    softcap=(None, 0.7),
    strided=(False, True),
    dtype=DTYPES,
)


def inputs(case: Case, device: str) -> tuple[Tensor, ...]:
    (h, kv), (d, dv) = case["heads"], case["width"]
    c, r, t = case["contexts"], case["rows"], case["prefix"]
    kind: dict[str, Any] = {"dtype": case["dtype"], "strided": case["strided"], "device": device}
    sizes = [(c, h, r, d), (c, kv, r, d), (c, kv, r, dv), (c, kv, t, d), (c, kv, t, dv)]
    tensors = [make(*size, seed=i, **kind) for i, size in enumerate(sizes)]
    if not case["strided"]:  # as the model has them: [C, R, H, D] seen as [C, H, R, D]
        tensors[:3] = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors[:3]]
    # The second context sees none of its prefix, the others all but every third position.
    at, context = torch.arange(t, device=device), torch.arange(c, device=device)[:, None]
    seen = (at % 3 != context % 4) & (context != 1)
    own = [x.detach().requires_grad_(True) for x in tensors[:3]]
    return (*own, *tensors[3:], seen)


def attend(given: tuple[Tensor, ...], softcap: float | None, backend: str) -> tuple[Tensor, ...]:
    """The result, and the gradients in query, key and value for fixed gradients in it."""
    scaling = given[0].shape[-1] ** -0.5
    out = prefix_attention(*given, scaling=scaling, softcap=softcap, backend=backend)
    weights = normal(*out.shape, seed=9).to(out.dtype).to(out.device)
    return (out.detach(), *torch.autograd.grad(out, given[:3], grad_outputs=weights))


def reordered(given: tuple[Tensor, ...], order: Tensor) -> tuple[Tensor, ...]:
    """The same sums over the prefix and over the width, in another order."""
    query, key, value, prefix_key, prefix_value, seen = given
    order, d = order.to(query.device), query.shape[-1]
    prefix = [x[:, :, order] for x in (prefix_key, prefix_value)]
    back = torch.randperm(d, generator=torch.Generator().manual_seed(len(order))).to(query.device)
    undo = torch.argsort(back)

    def turned(x: Tensor) -> Tensor:
        return x[..., back].detach().requires_grad_(True)

    assert torch.equal(turned(query)[..., undo], query)
    return turned(query), turned(key), value, prefix[0][..., back], prefix[1], seen[:, order]


def in_orders(given: tuple[Tensor, ...], softcap: float | None) -> list[tuple[Tensor, ...]]:
    """By torch, in several orders of the sums; gradients in the order of the inputs."""
    found = [attend(given, softcap, "reference")]
    d = given[0].shape[-1]
    for order in orders(given[3].shape[2]):
        out, dq, dk, dv = attend(reordered(given, order), softcap, "reference")
        back = torch.randperm(d, generator=torch.Generator().manual_seed(len(order)))
        undo = torch.argsort(back).to(out.device)
        found.append((out, dq[..., undo], dk[..., undo], dv))
    return found


@pytest.mark.parametrize("case", CASES, ids=spelled)
def test_rows_and_gradients_are_no_worse_than_torchs(case: Case, kernel_device: str) -> None:
    given, softcap = inputs(case, kernel_device), case["softcap"]
    found = attend(given, softcap, "triton")
    wide = converted(given, Tensor.double)
    exact = attend(wide, softcap, "reference")
    torchs = in_orders(given, softcap)
    names = ("out", "d query", "d key", "d value")
    for i, name in enumerate(names):
        assert found[i].dtype == case["dtype"]
        require_no_worse(found[i], [t[i] for t in torchs], exact[i], name)


@pytest.mark.parametrize(("contexts", "rows"), [(0, 3), (2, 0)])
def test_nothing_gives_nothing(contexts: int, rows: int, kernel_device: str) -> None:
    case = {"contexts": contexts, "heads": (2, 1), "rows": rows, "prefix": 5, "width": (4, 4)}
    given = inputs({**case, "strided": False, "dtype": torch.float32}, kernel_device)
    for found, like in zip(attend(given, None, "triton"), (given[0], *given[:3]), strict=True):
        assert found.shape == like.shape


def test_what_is_hidden_may_be_anything(kernel_device: str) -> None:
    case = {"contexts": 1, "heads": (2, 1), "rows": 3, "prefix": 20, "width": (4, 4)}
    given = inputs({**case, "strided": False, "dtype": torch.float32}, kernel_device)
    expected = attend(given, None, "triton")
    hidden = ~given[5][:, None, :, None]
    prefix = [x.masked_fill(hidden, float("inf")) for x in given[3:5]]
    found = attend((*given[:3], *prefix, given[5]), None, "triton")
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_scores_too_large_for_exponentials_are_finite(kernel_device: str) -> None:
    case = {"contexts": 1, "heads": (2, 1), "rows": 3, "prefix": 20, "width": (16, 16)}
    given = inputs({**case, "strided": False, "dtype": torch.float32}, kernel_device)
    large = tuple((300 * x.detach()).requires_grad_(True) for x in given[:2])
    for found in attend((*large, *given[2:]), None, "triton"):
        assert found.isfinite().all()


def test_a_prefix_that_wants_gradients_is_refused(kernel_device: str) -> None:
    case = {"contexts": 1, "heads": (2, 1), "rows": 3, "prefix": 2, "width": (4, 4)}
    given = inputs({**case, "strided": False, "dtype": torch.float32}, kernel_device)
    given[3].requires_grad_(True)
    with pytest.raises(BackendError, match="gives the prefix no gradient"):
        attend(given, None, "triton")
