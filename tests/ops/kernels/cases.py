"""Cases that cover every pair of choices, inputs in odd memory layouts, and the allowed error."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tests.support.values import normal, step

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
T = TypeVar("T")
Case = dict[str, Any]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def size(interpreted: int, compiled: int) -> int:
    """A size for kernels interpreted and one for kernels on a GPU.

    The interpreter's time goes with the number of programs and of blocks. Just over one block of
    every tile size has an edge, a middle and a second program as well as many blocks have.
    """
    return interpreted if INTERPRETED else compiled


def pairs(**choices: Sequence[Any]) -> list[Case]:
    """Few cases in which any two choices of any two names occur together, found greedily."""
    names = list(choices)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(choices[a])), range(len(choices[b])))
    }
    cases = []
    while missing:
        case: dict[str, int] = dict([min(missing)[0], min(missing)[1]])
        for name in names:
            if name not in case:
                gain = [
                    len(_covered({**case, name: i}, names, missing)) for i in _range(choices, name)
                ]
                case[name] = gain.index(max(gain))
        missing -= _covered(case, names, missing)
        cases.append({name: choices[name][case[name]] for name in names})
    return cases


def _range(choices: dict[str, Sequence[Any]], name: str) -> range:
    return range(len(choices[name]))


def _covered(case: dict[str, int], names: list[str], missing: set[Any]) -> set[Any]:
    known = [(n, case[n]) for n in names if n in case]
    return missing & set(itertools.combinations(known, 2))


def spelled(case: Case) -> str:
    """The case as a test's id."""
    return "-".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in case.items())


def values(*shape: int, dtype: torch.dtype, seed: int, strided: bool, device: str) -> Tensor:
    """Normal values; ``strided`` ones are every other column of something wider."""
    x = normal(*shape, dtype=dtype, seed=seed).to(device)
    if not strided:
        return x
    wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), 1e4, dtype=dtype, device=device)
    wide[..., 1::2] = x
    return wide[..., 1::2]


def require_no_worse(found: Tensor, torchs: Sequence[Tensor], exact: Tensor, name: str) -> None:
    """At most twice the error of torch in the same precision, and one rounding of the result.

    Args:
        found: by the kernel.
        torchs: by torch, once or in several orders of the same sums; a single rounding error that
            happens to be small says little about the precision, so the largest counts.
        exact: in float64.
        name: of the result, for the message.
    """
    assert found.shape == exact.shape, name
    found, exact = found.double().cpu(), exact.cpu()
    assert found.isfinite().all(), f"{name}: {int((~found.isfinite()).sum())} are not finite"
    if not exact.numel():
        return
    worst = max(float((x.double().cpu() - exact).abs().max()) for x in torchs)
    rounding = step(torchs[0].dtype) * float(exact.abs().max())
    error = float((found - exact).abs().max())
    assert error <= 2 * worst + rounding, (
        f"{name}: off by {error:.2e}; torch by {worst:.2e}, rounding {rounding:.2e}"
    )


def orders(n: int) -> list[Tensor]:
    """Four orders in which n terms may be summed."""
    return [torch.randperm(n, generator=torch.Generator().manual_seed(i)) for i in range(4)]


def converted(given: T, to: Callable[[Tensor], Tensor]) -> T:
    """The same inputs with ``to`` applied to every floating-point tensor."""
    result: Any = given
    if isinstance(given, dict):
        result = {k: converted(v, to) for k, v in given.items()}
    elif isinstance(given, tuple):
        result = tuple(converted(v, to) for v in given)
    elif isinstance(given, Tensor) and given.is_floating_point():
        result = to(given)
    return cast("T", result)
