"""What captum's arguments mean, and refusals of what is not supported of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkn_engine.attribution.quadrature_rules import fixed_rule
from dkn_engine.config import integer as _integer
from dkn_engine.errors import UserError

Rule = tuple[NDArray[np.float64], NDArray[np.float64]]
_RULES = {
    "gausslegendre": "gauss_legendre",
    "riemann_left": "riemann_left",
    "riemann_middle": "riemann_middle",
    "riemann_right": "riemann_right",
    "riemann_trapezoid": "linspace",
}


def single(value: Any) -> Any:
    """What a tuple of one holds; anything else as it is."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def integer(value: Any) -> int | None:
    """Python's, NumPy's or a 0-dimensional tensor's integer; None for anything else, and bools."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    return _integer(value)


def positive(name: str, value: Any) -> int:
    """An integer of at least 1.

    Raises:
        UserError: it is something else.
    """
    found = integer(value)
    if found is None or found < 1:
        raise UserError(f"{name} must be a positive integer; got {value!r}")
    return found


def require_supported(inputs: Any, grad_kwargs: Any) -> None:
    """Refuse what :class:`LayerIntegratedGradients` does not take."""
    if not isinstance(inputs, Tensor) or inputs.ndim < 1 or not len(inputs):
        raise UserError(
            "inputs must be one tensor with a row an example (several inputs are not supported: "
            f"give the others as additional_forward_args); got {type(inputs).__name__}"
        )
    if grad_kwargs is not None and grad_kwargs != {}:
        raise UserError(
            f"grad_kwargs must be None or empty, they are not supported; got {grad_kwargs!r}"
        )


def baseline_inputs(inputs: Tensor, baselines: Any) -> Tensor:
    """The inputs at the path's start, in the shape of ``inputs``."""
    if baselines is None:
        return torch.zeros_like(inputs)
    if isinstance(baselines, Tensor) and baselines.ndim == 0:
        baselines = baselines.item()
    number = isinstance(baselines, int | float | np.integer | np.floating)
    if number and not isinstance(baselines, bool):
        return torch.full_like(inputs, baselines)
    if not isinstance(baselines, Tensor):
        raise UserError(
            f"baselines must be None, a number or one tensor; got {type(baselines).__name__}"
        )
    if baselines.shape[1:] != inputs.shape[1:] or baselines.shape[:1] not in {
        (1,),
        inputs.shape[:1],
    }:
        raise UserError(
            f"baselines must have the shape of inputs, {list(inputs.shape)}, or one row; got "
            f"{list(baselines.shape)}"
        )
    return baselines.expand_as(inputs)


def repeated(arg: Any, n: int, copies: int) -> Any:
    """A further argument for ``copies`` times ``n`` rows."""
    if not isinstance(arg, Tensor) or arg.ndim == 0:
        return arg
    if arg.shape[:1] != (n,):
        raise UserError(
            f"additional_forward_args: tensors must have {n} rows, one an example; got "
            f"{list(arg.shape)}"
        )
    return arg.repeat(copies, *[1] * (arg.ndim - 1))


def select(out: Tensor, target: Any, copies: int) -> Tensor:
    """The target's output ``[N]`` of outputs ``[N, ...]``, where N is ``copies`` times B."""
    n = len(out) // copies
    if target is None:
        if out[0].numel() != 1:
            raise UserError(
                f"target must say which output is meant; forward_func returns {list(out.shape)}"
            )
        return out.reshape(len(out))
    if integer(target) is not None or isinstance(target, tuple):
        where: Any = (slice(None), *_index(out, target))
        return out[where]
    if isinstance(target, list) and len(target) == n and isinstance(target[0], tuple):
        indices = [_index(out, i) for i in target] * copies
        rows = torch.arange(len(out), device=out.device)
        where = (rows, *torch.tensor(indices, device=out.device).T)
        return out[where]
    each = _integers(target)
    if each is None or len(each) not in {1, n} or out.ndim != 2:
        raise UserError(
            f"target must be an integer, a tuple of them, a list of {n} tuples, or one integer for "
            f"each of {n} examples with outputs [{n}, V]; got {target!r} for outputs "
            f"{list(out.shape)}"
        )
    if bool(((each < 0) | (each >= out.shape[1])).any()):
        raise UserError(f"target must be from 0 to {out.shape[1] - 1}; got {each.tolist()}")
    columns = each.to(out.device).expand(n).repeat(copies).unsqueeze(1)
    return out.gather(1, columns).squeeze(1)


def _integers(target: Any) -> Tensor | None:
    """int64 ``[n]``, or None for anything else."""
    if isinstance(target, Tensor):
        plain = not target.dtype.is_floating_point and not target.dtype.is_complex
        return target.reshape(-1).to(torch.int64) if plain and target.dtype != torch.bool else None
    found = [integer(i) for i in target] if isinstance(target, list) else [None]
    return None if None in found else torch.tensor(found, dtype=torch.int64)


def _index(out: Tensor, target: Any) -> tuple[int, ...]:
    """Indices into all axes of an output but that of the examples."""
    sizes = out.shape[1:]
    index = [integer(i) for i in (target if isinstance(target, tuple) else (target,))]
    found = tuple(i for i in index if i is not None)
    fits = len(found) == len(index) == len(sizes) and all(
        -size <= i < size for i, size in zip(found, sizes, strict=True)
    )
    if not fits:
        raise UserError(f"target must index an output {list(sizes)}; got {target!r}")
    return found


def rule(method: str, n: int) -> Rule:
    """Points and weights of a rule, as captum has them."""
    if method not in _RULES:
        raise UserError(f"method must be one of {', '.join(_RULES)}; got {method!r}")
    if n < 2 and method != "gausslegendre":
        raise UserError(f"n_steps must be at least 2 with method={method!r}; got {n}")
    nodes, weights = fixed_rule(_RULES[method], n)
    if method == "riemann_trapezoid":  # captum's weights sum to (n - 1) / n
        weights[[0, -1]] /= 2
    return nodes, weights
