"""Each Triton kernel beside its torch reference and the roofline of the card, by its own rates.

The roofline of an operation is the longer of its products at the rate of a large product of
matrices of that dtype, and of its operands and results, each moved once, at the rate of a copy;
both rates are measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.rows import Recorder, timed
from benchmarks.kernels.compile import CASES, Case
from dkn_engine.ops.answer_probability import Head, Tail, answer_probability
from dkn_engine.ops.ig_accumulate import ig_accumulate
from dkn_engine.ops.path_activation import path_activation
from dkn_engine.ops.prefix_attention import prefix_attention

TINY = Case(16, 24, 50, 2, 1, 8, "silu", True, ("bfloat16",), 6, 2, 3, 4)
NAMES = ("llama-2-7b", "gpt2", "gemma-2-2b", "odd")
CONTEXTS = 8
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu_erf": nn.GELU,
    "relu": nn.ReLU,
}


@dataclass(frozen=True)
class Rates:
    """Operations a second by bytes of a number, and bytes a second."""

    products: dict[int, float]
    memory: float

    def roofline(self, flop: float, moved: float, size: int) -> float:
        """Seconds that an operation takes at least."""
        return max(flop / self.products[size], moved / self.memory)


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation at one shape.

    Attributes:
        run: by backend.
        flop: in products of matrices and elementwise.
        moved: bytes of operands and results.
    """

    name: str
    run: Callable[[str], Any]
    flop: float
    moved: float


def kernels(record: Recorder, device: str, *, tiny: bool) -> None:
    """Rows of all operations; one that fails does not keep the others from running."""
    rates = measured_rates(record, device, 256 if tiny else 8192)
    repeats = 1 if tiny else 30
    for name, case in {"tiny": TINY}.items() if tiny else {n: CASES[n] for n in NAMES}.items():
        for dtype in case.dtypes[:2]:
            for operation in operations(case, getattr(torch, dtype), device):
                label = f"{operation.name}, {name}, {dtype}"
                size = getattr(torch, dtype).itemsize
                bound = rates.roofline(operation.flop, operation.moved, size)
                record(label, "roofline", "seconds", [bound])
                measure(record, label, operation, bound, repeats, device)


def measure(
    record: Recorder, label: str, operation: Operation, bound: float, repeats: int, device: str
) -> None:
    """Rows of one operation: both implementations, how far they are apart, the kernel's share."""
    with record.surviving(label, "reference"):
        expected = operation.run("reference")
        times = timed(lambda: operation.run("reference"), repeats, device)
        record(label, "reference", "seconds", times)
    with record.surviving(label, "triton"):
        result = operation.run("triton")
        record(label, "triton", "apart_from_reference", [apart(result, expected)])
        ours = timed(lambda: operation.run("triton"), repeats, device)
        record(label, "triton", "seconds", ours)
        record(label, "triton", "share_of_roofline", [bound / t for t in ours])


def apart(result: Any, expected: Any) -> float:
    """The largest difference as a share of the largest value, over all results."""
    pairs = (
        [(result, expected)] if isinstance(result, Tensor) else zip(result, expected, strict=True)
    )
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs
    )


def measured_rates(record: Recorder, device: str, n: int) -> Rates:
    """What large products of matrices and a large copy reach."""
    products = {}
    for dtype in (torch.bfloat16, torch.float32):
        m = n if dtype.itemsize == 2 else n // 2
        a, b = (torch.randn(m, m, device=device).to(dtype) for _ in range(2))
        rates = [2 * m**3 / t for t in timed(lambda a=a, b=b: a @ b, 5, device)]  # type: ignore[misc]
        products[dtype.itemsize] = max(rates)
        label = f"product of {m} x {m}, {str(dtype).removeprefix('torch.')}"
        record(label, "torch", "tflop_per_second", [r / 1e12 for r in rates])
    x = torch.empty(n * n * 2, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    copies = [2 * x.nbytes / t for t in timed(lambda: y.copy_(x), 5, device)]
    record(f"copy of {x.nbytes >> 10} KiB", "torch", "gb_per_second", [c / 1e9 for c in copies])
    return Rates(products, max(copies))


def operations(case: Case, dtype: torch.dtype, device: str) -> Iterator[Operation]:
    """All operations of a case, with random operands."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = dtype, scale: float = 1.0) -> Tensor:
        x = torch.randn(*shape, generator=generator, device=device) * scale
        return x.to(dtype)

    yield from _ig_accumulate(case, draw)
    yield _path_activation(case, draw)
    yield from _prefix_attention(case, draw)
    yield _answer_probability(case, draw)


Draw = Callable[..., Tensor]


def _ig_accumulate(case: Case, draw: Draw) -> Iterator[Operation]:
    n, m, f, d = case.points, case.segments, case.f, case.d
    w_out = draw(d, f, scale=d**-0.5).T if case.transposed else draw(f, d, scale=d**-0.5)
    gradients, weights = draw(n, d), draw(2, n, dtype=torch.float32).abs()
    segments = torch.arange(m, device=w_out.device).repeat_interleave(-(-n // m))[:n]
    base, delta, factor = (draw(m, f, dtype=torch.float32) for _ in range(3))
    up = draw(m, f) if case.gated else None
    alphas = torch.linspace(0, 1, n, dtype=torch.float64, device=w_out.device)
    path = (alphas, base, delta, up, ACTIVATIONS[case.kind]())
    given = (gradients, weights, segments, w_out, factor)
    once = gradients.nbytes + w_out.nbytes + factor.nbytes + 2 * factor.nbytes
    yield Operation(
        "ig_accumulate post",
        lambda backend: ig_accumulate(*given, backend=backend),
        2 * 2 * m * d * f + 2 * 2 * n * d,
        once,
    )
    ends = 2 * base.nbytes + (0 if up is None else up.nbytes)
    yield Operation(
        "ig_accumulate pre",
        lambda backend: ig_accumulate(*given, path=path, backend=backend),
        2 * n * d * f,
        once + ends,
    )


def _path_activation(case: Case, draw: Draw) -> Operation:
    n, f = case.points, case.f
    base, value = (draw(n, f, dtype=torch.float32) for _ in range(2))
    up = draw(n, f) if case.gated else None
    alphas = torch.linspace(0, 1, n, dtype=torch.float64, device=base.device)
    act = ACTIVATIONS[case.kind]()
    moved = 3 * base.nbytes + (0 if up is None else up.nbytes)
    return Operation(
        "path_activation",
        lambda backend: path_activation(alphas, base, value, up, act, backend=backend),
        10 * n * f,
        moved,
    )


def _prefix_attention(case: Case, draw: Draw) -> Iterator[Operation]:
    c, r, t, width = CONTEXTS, case.rows, case.prefix, case.width
    query = draw(c, case.heads, r, width)
    rows_kv = [draw(c, case.kv_heads, r, width) for _ in range(2)]
    prefix_kv = [draw(c, case.kv_heads, t, width) for _ in range(2)]
    visible = torch.ones(c, t, dtype=torch.bool, device=query.device)
    visible[0, : t // 2] = False
    slope = draw(c, case.heads, r, width)

    options: dict[str, Any] = {"scaling": width**-0.5, "softcap": case.softcap}

    def forward(backend: str, query: Tensor = query) -> Tensor:
        given = (query, rows_kv[0], rows_kv[1], prefix_kv[0], prefix_kv[1], visible)
        return prefix_attention(*given, **options, backend=backend)

    def both(backend: str) -> Tensor:
        leaf = query.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(forward(backend, leaf), leaf, slope)
        return gradient

    flop = 4.0 * c * case.heads * r * (t + 1) * width
    moved = 2 * query.nbytes + sum(x.nbytes for x in (*rows_kv, *prefix_kv))
    yield Operation("prefix_attention forward", forward, flop, moved)
    # The scores once more, and four products for the gradients of query, key and value.
    yield Operation("prefix_attention both ways", both, 3.5 * flop, 2 * moved + slope.nbytes)


def _answer_probability(case: Case, draw: Draw) -> Operation:
    n = CONTEXTS * case.rows
    hidden, weight = draw(n, case.d), draw(case.v, case.d, scale=case.d**-0.5)
    targets = torch.arange(n, device=hidden.device) % case.v
    head = Head(lambda x: x, weight, softcap=case.softcap)
    tail = Tail(head.logits, lambda: head)

    def run(backend: str) -> tuple[Tensor, Tensor | None]:
        return answer_probability(
            tail, hidden, targets, objective="probability", gradient=True, backend=backend
        )

    moved = 2 * weight.nbytes + 2 * hidden.nbytes
    return Operation("answer_probability", run, 4.0 * n * case.d * case.v, moved)
