"""The fused ``ig_accumulate`` against its reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dkn_engine.ops.ig_accumulate import ig_accumulate
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
from tests.support.values import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poison")

# steps: points a segment; ragged segments have from none to twice as many, in no order.
CASES = pairs(
    f=(1, 63, size(67, 331), size(128, 1536)),
    d=(1, 48, 63, size(67, 331)),  # rows of whole vectors, too, which have tiles of their own
    steps=(1, 4, 7, size(14, 20)),
    rules=(1, 2, 3),
    act=("", *ACTIVATIONS),
    gated=(False, True),
    ragged=(False, True),
    layout=("linear", "conv1d", "strided"),
    dtype=DTYPES,
)
# On a GPU the width of LLaMA-2-7B.
WIDE: Case = {"d": 17, "steps": 1, "rules": 1, "gated": True, "ragged": False, "layout": "linear"}
CASES += [
    {"f": size(144, 11008), **WIDE, "act": act, "dtype": torch.bfloat16} for act in ("", "silu")
]
M = 5


def inputs(case: Case, device: str) -> dict[str, Any]:
    f, d, dtype = case["f"], case["d"], case["dtype"]
    segments = torch.arange(M).repeat_interleave(case["steps"])
    if case["ragged"]:
        counts = torch.tensor([2, 0, 1, 0, 1]) * case["steps"]  # the last but one is empty, too
        segments = torch.arange(M).repeat_interleave(counts)
        segments = segments[torch.randperm(len(segments), generator=torch.Generator())]
    n, strided = len(segments), case["layout"] == "strided"
    kind: dict[str, Any] = {"strided": strided, "device": device}
    w_out = make(f, d, dtype=dtype, seed=3, **kind)
    if case["layout"] == "linear":  # as nn.Linear stores it: transposed
        w_out = w_out.T.contiguous().T
    path = None
    if case["act"]:
        alphas = torch.linspace(0, 1, n, dtype=torch.float64, device=device)
        ends = [make(M, f, dtype=torch.float32, seed=5 + i, **kind) for i in range(2)]
        up = make(M, f, dtype=dtype, seed=7, **kind) if case["gated"] else None
        path = (alphas, *ends, up, ACTIVATIONS[case["act"]][0])
    return {
        "gradients": make(n, d, dtype=dtype, seed=1, **kind),
        "weights": make(case["rules"], n, dtype=torch.float64, seed=2, **kind),
        "segments": segments.to(device),
        "w_out": w_out,
        "factor": make(M, f, dtype=torch.float32, seed=4, **kind),
        "path": path,
    }


def permuted(given: dict[str, Any], order: Tensor) -> dict[str, Any]:
    """The same sums over d, in another order."""
    order = order.to(given["w_out"].device)
    both = {k: given[k].index_select(1, order) for k in ("gradients", "w_out")}
    return {**given, **both}


@pytest.mark.parametrize("case", CASES, ids=spelled)
def test_sums_are_no_worse_than_torchs(case: Case, kernel_device: str) -> None:
    given = inputs(case, kernel_device)
    found = ig_accumulate(**given, backend="triton")
    assert found.dtype == torch.float32
    exact = ig_accumulate(**converted(given, Tensor.double), backend="reference")
    torchs = [
        ig_accumulate(**permuted(given, order), backend="reference") for order in orders(case["d"])
    ]
    require_no_worse(found, torchs, exact, "scores")


@pytest.mark.parametrize("act", ["", "silu"])
def test_empty_segments_give_zeros_and_nothing_gives_nothing(act: str, kernel_device: str) -> None:
    case = {**WIDE, "f": 7, "act": act, "dtype": torch.float32}
    given = inputs({**case, "steps": 0}, kernel_device)
    assert torch.equal(ig_accumulate(**given, backend="triton").cpu(), torch.zeros(1, M, 7))
    assert ig_accumulate(**inputs({**case, "f": 0}, kernel_device), backend="triton").shape == (
        1,
        M,
        0,
    )


def test_a_kernel_that_does_not_write_is_seen(
    kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poison works: these tests would notice a gap."""
    from dkn_engine.ops._triton import blocks

    monkeypatch.setattr(blocks, "launch", lambda *_args, **_options: None)
    given = inputs({**WIDE, "f": 7, "act": "", "dtype": torch.float32}, kernel_device)
    assert ig_accumulate(**given, backend="triton").isnan().all()


def test_points_of_many_groups_of_segments_reach_their_own(kernel_device: str) -> None:
    """More segments than one program holds, so several programs share the sorted points."""
    m, n = size(40, 150), size(110, 400)
    random = torch.Generator().manual_seed(0)
    segments = torch.randint(0, m, (n,), generator=random).to(kernel_device)
    kind: dict[str, Any] = {"dtype": torch.float32, "strided": False, "device": kernel_device}
    ends = [make(m, 33, seed=5 + i, **kind) for i in range(2)]
    alphas = torch.rand(n, generator=random).to(kernel_device)
    path = (alphas, ends[0], ends[1], None, ACTIVATIONS["silu"][0])
    given: dict[str, Any] = {
        "gradients": make(n, 5, seed=1, **kind),
        "weights": make(2, n, seed=2, **kind),
        "segments": segments,
        "w_out": make(33, 5, seed=3, **kind),
        "factor": make(m, 33, seed=4, **kind),
    }
    for one in (None, path):
        found = ig_accumulate(**given, path=one, backend="triton")
        plain = ig_accumulate(**given, path=one, backend="reference")
        exact = converted({**given, "path": one}, Tensor.double)
        require_no_worse(found, [plain], ig_accumulate(**exact, backend="reference"), "scores")
