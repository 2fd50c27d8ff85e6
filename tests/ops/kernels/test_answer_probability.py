"""``answer_probability``'s kernels against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dkn_engine.ops.answer_probability import Head, Tail, answer_probability
from tests.ops.kernels.cases import DTYPES, Case, orders, pairs, require_no_worse, spelled
from tests.ops.kernels.cases import values as make

pytestmark = pytest.mark.usefixtures("poison")

CASES = pairs(
    n=(1, 63, 130),
    d=(1, 64, 131),
    v=(1, 63, 192, 331),
    objective=("probability", "log_probability", "logit"),
    bias=(False, True),
    scale=(1.0, 0.3),
    softcap=(None, 5.0),
    strided=(False, True),
    dtype=DTYPES,
)


def norm(x: Tensor) -> Tensor:
    """In float32 and back, as models do it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()).to(x.dtype)


def head_of(case: Case, device: str, order: Tensor | None = None, wide: bool = False) -> Head:
    kind: dict[str, Any] = {"dtype": case["dtype"], "strided": case["strided"], "device": device}
    weight = make(case["v"], case["d"], seed=3, **kind)
    bias = make(case["v"], seed=4, **kind) if case["bias"] else None
    if order is not None:
        weight = weight[:, order.to(device)]
    if wide:
        weight, bias = weight.double(), None if bias is None else bias.double()
    return Head(norm, weight, bias, case["scale"], case["softcap"])


def inputs(case: Case, device: str) -> tuple[Tensor, Tensor]:
    kind: dict[str, Any] = {"dtype": case["dtype"], "strided": case["strided"], "device": device}
    hidden = make(case["n"], case["d"], seed=1, **kind)
    return hidden, torch.arange(case["n"], device=device) * 5 % case["v"]


def run(
    head: Head, hidden: Tensor, targets: Tensor, objective: str, backend: str
) -> tuple[Tensor, Tensor]:
    value, gradient = answer_probability(
        Tail(head.logits, lambda: head),
        hidden,
        targets,
        objective=objective,
        gradient=True,
        backend=backend,
    )
    assert gradient is not None
    return value, gradient


def in_orders(
    case: Case, hidden: Tensor, targets: Tensor, device: str
) -> list[tuple[Tensor, Tensor]]:
    """By torch, in several orders of the sums over d."""
    found = []
    for order in orders(case["d"]):
        order = order.to(device)
        head = head_of(case, device, order)
        value, gradient = run(head, hidden[:, order], targets, case["objective"], "reference")
        found.append((value, gradient[:, torch.argsort(order)]))
    return found


@pytest.mark.parametrize("case", CASES, ids=spelled)
def test_values_and_gradients_are_no_worse_than_torchs(case: Case, kernel_device: str) -> None:
    hidden, targets = inputs(case, kernel_device)
    value, gradient = run(
        head_of(case, kernel_device), hidden, targets, case["objective"], "triton"
    )
    assert (value.dtype, gradient.dtype) == (torch.float32, case["dtype"])
    wide = head_of(case, kernel_device, wide=True)
    exact = run(wide, hidden.double(), targets, case["objective"], "reference")
    torchs = in_orders(case, hidden, targets, kernel_device)
    require_no_worse(value, [t[0] for t in torchs], exact[0], "value")
    require_no_worse(gradient, [t[1] for t in torchs], exact[1], "gradient")


SMALL: Case = {"n": 5, "d": 7, "v": 150, "bias": True, "scale": 0.5, "softcap": 3.0}
SMALL |= {"strided": False, "dtype": torch.float32}


def test_blocks_of_the_vocabulary_add_up(
    kernel_device: str,
) -> None:
    """150 tokens in blocks of 64, with a target in each and one that is only in the last."""
    from dkn_engine.ops.answer_probability import triton as kernels

    hidden, _ = inputs(SMALL, kernel_device)
    targets = torch.tensor([0, 63, 64, 127, 149], device=kernel_device)
    head = head_of(SMALL, kernel_device)
    expected = run(head, hidden, targets, "probability", "reference")
    exact_head = head_of(SMALL, kernel_device, wide=True)
    exact = run(exact_head, hidden.double(), targets, "probability", "reference")
    found = kernels.answer_probability(head, hidden, targets, "probability", True, block=64)
    for i, name in enumerate(("value", "gradient")):
        one = found[i]
        assert one is not None
        require_no_worse(one, [expected[i]], exact[i], name)


def test_no_buffer_holds_a_row_of_logits(
    kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dkn_engine.ops._triton import blocks
    from dkn_engine.ops.answer_probability import triton as kernels

    largest = 0

    def recorded(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        nonlocal largest
        own = [a for a in args if isinstance(a, Tensor) and a.shape[:1] == hidden.shape[:1]]
        largest = max(largest, *(a.numel() for a in own))
        kernel[grid](*args, **options)

    monkeypatch.setattr(blocks, "launch", recorded)
    hidden, targets = inputs(SMALL, kernel_device)
    head = head_of(SMALL, kernel_device)
    kernels.answer_probability(head, hidden, targets, "probability", True, block=64)
    assert largest == 5 * 64


def test_without_a_gradient_only_the_projection_runs(
    kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dkn_engine.ops._triton import blocks

    names = []
    launch = blocks.launch

    def recorded(kernel: Any, *args: Any, **options: Any) -> None:
        names.append(kernel.fn.__name__)
        launch(kernel, *args, **options)

    monkeypatch.setattr(blocks, "launch", recorded)
    hidden, targets = inputs(SMALL, kernel_device)
    head = head_of(SMALL, kernel_device)
    tail = Tail(head.logits, lambda: head)
    value, none = answer_probability(
        tail, hidden, targets, objective="probability", gradient=False, backend="triton"
    )
    assert none is None
    assert names == ["project_kernel"]
    with_gradient, _ = run(head, hidden, targets, "probability", "triton")
    assert torch.equal(value, with_gradient)


def test_probabilities_too_small_for_float32_keep_their_logarithm(kernel_device: str) -> None:
    hidden = torch.tensor([[300.0, 0.0]], device=kernel_device)
    head = Head(lambda x: x, torch.eye(2, device=kernel_device))
    targets = torch.tensor([1], device=kernel_device)
    value, gradient = run(head, hidden, targets, "log_probability", "triton")
    assert value.tolist() == [-300.0]
    assert gradient.tolist() == [[-1.0, 1.0]]


def test_a_target_outside_the_vocabulary_is_not_a_number(kernel_device: str) -> None:
    """Where torch would refuse it with an index error, a kernel cannot raise."""
    hidden, targets = inputs(SMALL, kernel_device)
    head = head_of(SMALL, kernel_device)
    value, _ = answer_probability(
        Tail(head.logits, lambda: head),
        hidden,
        targets.fill_(150),
        objective="probability",
        gradient=False,
        backend="triton",
    )
    assert value.isnan().all()


def test_no_rows_give_nothing(kernel_device: str) -> None:
    hidden, targets = inputs({**SMALL, "n": 0}, kernel_device)
    value, gradient = run(head_of(SMALL, kernel_device), hidden, targets, "probability", "triton")
    assert value.shape == (0,)
    assert gradient.shape == (0, 7)
