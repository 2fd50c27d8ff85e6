"""Inputs, non-linearities in closed form and tolerances for the tests of the operations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import erf, expit
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operation computes."""
    return torch.promote_types(dtype, torch.float32)


def step(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number."""
    return float(torch.finfo(dtype).eps)


def _tanh_inner(z: Tensor) -> Tensor:
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    t = torch.tanh(_tanh_inner(z))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return (1 + t) / 2 + z * (1 - t**2) * inner / 2


def _phi(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def _cumulative(z: Tensor) -> Tensor:
    return torch.from_numpy((1 + erf(z.numpy() / math.sqrt(2))) / 2)


def _logistic(z: Tensor) -> Tensor:
    return torch.from_numpy(expit(z.numpy()))


Function = Callable[[Tensor], Tensor]
# name: (module, value, derivative)
ACTIVATIONS: dict[str, tuple[nn.Module, Function, Function]] = {
    "relu": (nn.ReLU(), lambda z: z.clamp(min=0), lambda z: (z > 0).double()),
    "silu": (
        nn.SiLU(),
        lambda z: z * _logistic(z),
        lambda z: _logistic(z) * (1 + z * _logistic(-z)),
    ),
    "gelu": (nn.GELU(), lambda z: z * _cumulative(z), lambda z: _cumulative(z) + z * _phi(z)),
    "gelu_tanh": (
        nn.GELU(approximate="tanh"),
        lambda z: z * (1 + torch.tanh(_tanh_inner(z))) / 2,
        _gelu_tanh_slope,
    ),
}
