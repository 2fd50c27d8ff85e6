"""Projections of any kind by what they do: adapters and packed weights are read by running them.

A projection that is linear in its input, up to a bias, gives its rows for one-hot inputs, whatever
it keeps them in. That it is linear is tried, not believed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.dense import (
    dense_shape,
    dense_weight,
    is_conv1d,
    is_dense,
    refuse_projection,
)
from dkn_engine.models.devices import beside, with_data
from dkn_engine.models.experts import Mixture, Rows
from dkn_engine.models.guest import guest
from dkn_engine.models.torch_internals import class_forward

_BLOCK = 1024  # one-hot inputs at once
# Inputs that add up exactly in bfloat16: one large entry, below what LLM.int8 sets apart (6), and
# small ones, which are lost where the large one sets the step of an 8-bit grid.
_LARGE, _SMALL = 3.0, 64


def is_projection(module: nn.Module) -> bool:
    """Whether the module has a weight, or says how many numbers it reads and gives."""
    return hasattr(module, "weight") or hasattr(module, "in_features")


def sizes(module: nn.Module) -> tuple[int, int]:
    """How many numbers a projection reads and gives.

    Raises:
        UnsupportedModelError: it is not dense and does not say.
    """
    n_in, n_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if not is_dense(module) and isinstance(n_in, int) and isinstance(n_out, int):
        return n_in, n_out
    rows, columns = dense_shape(module)
    return (rows, columns) if is_conv1d(module) else (columns, rows)


def input_rows(module: nn.Module, index: Any, *, kept: bool = False) -> Tensor:
    """Rows ``[n, out]``: what a projection makes of each input of ``index``, its bias aside.

    Of a dense projection it is a view of its weight where ``index`` is a slice; ``kept`` as in
    :func:`dkn_engine.models.dense.dense_weight`.
    """
    if isinstance(module, Mixture):
        return module.rows(index)
    if is_dense(module):
        weight = dense_weight(module, kept=kept)
        return weight[index] if is_conv1d(module) else weight.T[index]
    n_in, _ = sizes(module)
    wanted = torch.arange(n_in)[index]
    # A row of zeros gives the bias.
    found = [_run(module, _one_hot(part, n_in)) for part in wanted.split(_BLOCK)]
    return torch.cat([rows[:-1] - rows[-1] for rows in found])


def output_rows(module: nn.Module, index: Any, *, kept: bool = False) -> Tensor:
    """Rows ``[n, in]``: the direction that each output of ``index`` reads; see `input_rows`."""
    if isinstance(module, Rows):
        return module.rows(index)
    if is_dense(module):
        weight = dense_weight(module, kept=kept)
        return (weight.T if is_conv1d(module) else weight)[index]
    return input_rows(module, slice(None)).T[index]


def bias_of(module: nn.Module) -> Tensor | None:
    """What a projection gives for zeros, ``[out]``; None of a dense one without a bias."""
    if isinstance(module, Mixture):  # biases of experts depend on the routing, and stay outside
        return torch.zeros_like(module.rows([0])[0])
    if is_dense(module):
        with with_data(module):
            bias: Any = module.bias
            return None if bias is None else bias.detach()
    return _run(module, torch.zeros(1, sizes(module)[0]))[0]


def require_linear(module: nn.Module, where: str) -> None:
    """Refuse a projection that is not dense and gives something else for a sum than for its parts.

    Raises:
        UnsupportedModelError: names it by ``where``.
    """
    if is_dense(module) or isinstance(module, Mixture | Rows):
        return
    first, second = _probes(sizes(module)[0])
    what = f"{where} ({type(module).__name__})"
    try:
        found: Any = _run(module, torch.stack([first, second, first + second, 0 * first]))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        refuse_projection(f"{what}, which cannot be tried: {error}")
    if not isinstance(found, Tensor):
        refuse_projection(f"{what}, which gives a {type(found).__name__}")
    a, b, both, zero = found.double()
    apart = float((a + b - zero - both).norm() / (both - zero).norm())
    # A few roundings of outputs in a short dtype (an adapter adds to its base); inputs rounded to 8
    # bits are 4 % apart and more where there are 256 of them.
    if not apart <= max(1e-3, float(torch.finfo(found.dtype).eps) * 2):
        raise UnsupportedModelError(
            "expected a projection that is linear in its input, of which single neurons are read; "
            f"found {what}, which gives something {apart:.1e} of its "
            "length away for the sum of two inputs (it rounds them, to 8 bits?): load the model "
            "with dkn.load_model(name, dequantize=True), or without quantization"
        )


def random_input(module: nn.Module, n: int, random: torch.Generator) -> Tensor:
    """Normal numbers ``[n, in]`` that the projection takes, where it is."""
    return _as_taken(module, torch.randn(n, sizes(module)[0], generator=random))


def _probes(n: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    probes = torch.randint(1, 4, (2, n), generator=random) / _SMALL
    probes *= 1 - 2 * torch.randint(0, 2, (2, n), generator=random)
    probes[0, 0], probes[1, n // 2] = _LARGE, -_LARGE
    return probes[0], probes[1]


def _one_hot(index: Tensor, n: int) -> Tensor:
    rows = torch.zeros(len(index) + 1, n)
    rows[torch.arange(len(index)), index] = 1
    return rows


def _run(module: nn.Module, x: Tensor) -> Tensor:
    """The module's own output for ``x`` ``[n, in]``, past hooks on it."""
    with guest(module, grad=False):
        out: Tensor = class_forward(module)(_as_taken(module, x))
    return out


def _as_taken(module: nn.Module, x: Tensor) -> Tensor:
    """``x`` on the device and in the dtype of the module's numbers, which may be packed.

    The weight may show the dtype that it multiplies in; else scales do, and biases.
    """
    kept = [getattr(module, "weight", None), *module.parameters(), *module.buffers()]
    tensors = [t for t in kept if isinstance(t, Tensor)]
    wide = [t.dtype for t in tensors if t.is_floating_point() and t.dtype.itemsize > 1]
    return beside(module, x).to(wide[0] if wide else torch.float32)
