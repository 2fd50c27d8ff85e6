"""RelP: gradients by rules of layer-wise relevance propagation, for as long as a block runs.

Forward passes stay what they are; gradients on the way back are other ones:

* a norm's divisor counts as a constant (LN-rule),
* so does the quotient act(z) / z of a non-linearity (Identity-rule; 0 at z = 0),
* so do the weights of attention (AH-rule),
* each factor of a gated MLP's product gets half of the gradient (Half-rule),
* everything linear is as it is (0-rule).

What is behind the last norm (a scale or a cap of the logits, the softmax) keeps its own gradient.

Source: Jafari et al. 2025, table 1 (arXiv 2508.21258).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.patched_rows import RowEngine
from dkn_engine.models.devices import device_of
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from dkn_engine.models.norms import fitted_norm


@contextlib.contextmanager
def relevance_rules(engine: RowEngine) -> Iterator[None]:
    """The rules, on what rows run through and on the model's tail.

    Raises:
        UnsupportedModelError: a module named as a norm is none, or a non-linearity is no module.
    """
    layout = engine.layout
    if any(mlp.act is None for mlp in layout.mlps):
        raise UnsupportedModelError(
            "method='relp' needs the non-linearity to be a module of the MLP (act_fn, act, …); "
            "found none: use method='attribution_patching'"
        )
    like = engine.clean.hidden[0]
    rules = [(norm, _fixed_divisor(layout, norm, like)) for norm in _norms(layout)]
    acts = {id(mlp.act): mlp.act for mlp in layout.mlps if mlp.act is not None}
    rules += [(act, _fixed_quotient) for act in acts.values()]
    handles = [module.register_forward_hook(rule) for module, rule in rules]
    if layout.gated:
        handles += [mlp.down.register_forward_pre_hook(_half) for mlp in layout.mlps]
    with hooks(handles):
        engine.frozen_attention = True
        try:
            yield
        finally:
            engine.frozen_attention = False


def _norms(layout: Layout) -> Iterator[nn.Module]:
    """Modules called norms, but for those of queries and keys, whose gradient nobody takes."""
    for name, module in layout.base.named_modules():
        last = name.rpartition(".")[2]
        if "norm" in type(module).__name__.lower() and not last.startswith(("q_", "k_", "query_")):
            yield module


def _fixed_divisor(layout: Layout, norm: nn.Module, like: Tensor) -> Any:
    weight: Any = getattr(norm, "weight", None)
    width = layout.d_model if weight is None else weight.shape[-1]
    device = like.device if weight is None else device_of(norm)
    found = fitted_norm(norm, like.new_empty(1, width, device=device))
    if found is None:
        raise UnsupportedModelError(
            f"method='relp' needs norms of a constant gain; found {type(norm).__name__}, which is "
            "none: use method='attribution_patching'"
        )
    return partial(_with_divisor, *found)


def _with_divisor(
    gain: Tensor, bias: Tensor, centred: bool, _norm: nn.Module, args: tuple[Any, ...], y: Tensor
) -> Tensor:
    """``y``, whose gradient lacks what the input does by way of its own size.

    The norm's Jacobian is diag(g) (C - u u^T / |u|^2) / s for the centred input u = C x and the
    divisor s; the term in u u^T is added again.
    """
    x, gain, bias = args[0].to(y.device), gain.to(y.device), bias.to(y.device)
    u = (x - x.mean(-1, keepdim=True) if centred else x).detach().to(gain.dtype)
    normed = y.detach().to(gain.dtype) - bias
    # |g u| / |g u / s| is the divisor, whatever epsilon it has in it.
    divisor = (gain * u).norm(dim=-1, keepdim=True) / normed.norm(dim=-1, keepdim=True)
    size = (x.to(gain.dtype) * u).sum(-1, keepdim=True) / (divisor.square() * u.shape[-1])
    found: Tensor = y + (normed * (size - size.detach())).to(y.dtype)
    return found


def _fixed_quotient(_act: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
    z: Tensor = args[0]
    quotient = torch.where(z == 0, 0, y / z).detach()
    return y.detach() + quotient * (z - z.detach())


def _half(_down: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return ((args[0] + args[0].detach()) / 2, *args[1:])
