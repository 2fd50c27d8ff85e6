"""What attribution is timed beside, each restated plainly: one fact in, scores [L, F] out.

All of them patch the activation of one site at the position that predicts the answer token and
differentiate the token's probability; they differ in how much work that takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import Layout


@dataclass(frozen=True, eq=False)
class Case:
    """One fact with a single answer token, and the model that is asked."""

    model: nn.Module
    layout: Layout
    sequence: AnswerSequence
    mask_id: int
    site: str = "post"

    @property
    def ids(self) -> Tensor:
        """Tokens ``[1, T]``, where the model is."""
        return torch.tensor([self.sequence.ids], device=next(self.model.parameters()).device)

    @property
    def target(self) -> int:
        """The gold token."""
        return self.sequence.targets[0]

    def module(self, layer: int) -> nn.Module:
        """The module whose input is the site."""
        mlp = self.layout.mlps[layer]
        found = mlp.down if self.site == "post" else mlp.act
        assert found is not None
        return found


@contextlib.contextmanager
def captured(case: Case, layers: range) -> Iterator[dict[int, Tensor]]:
    """Activations ``[B, F]`` at the last position of each forward in the block, by layer."""
    store: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            store[layer] = args[0][:, -1].detach()

        return hook

    handles = [case.module(l).register_forward_pre_hook(keep(l)) for l in layers]
    try:
        yield store
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def patched(case: Case, layer: int, activation: Tensor) -> Iterator[None]:
    """The block runs with ``activation`` ``[B, F]`` at the last position of one layer."""

    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.cat([args[0][:, :-1], activation.unsqueeze(1)], dim=1),)

    handle = case.module(layer).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def left_points(n_steps: int, like: Tensor) -> Tensor:
    """Alphas ``[n_steps, 1]`` of the left Riemann rule."""
    return (torch.arange(n_steps, dtype=torch.float64) / n_steps).to(like).unsqueeze(1)


def array(x: Tensor) -> np.ndarray:
    """As NumPy's, which has no bfloat16."""
    found: np.ndarray = (x.float() if x.dtype.itemsize < 4 else x).detach().cpu().numpy()
    return found


def masked_copies(case: Case) -> Tensor:
    """Tokens ``[T, T]``: each prompt token masked in turn."""
    length = len(case.sequence.ids)
    ids = case.ids.repeat(length, 1)
    ids[torch.arange(length), torch.arange(length)] = case.mask_id
    return ids


def released(case: Case, n_steps: int, multiply_by: str = "delta") -> np.ndarray:
    """The published procedure, layer by layer, with left Riemann points.

    The published code multiplies by the ``activation`` x; ``delta``, (x - x'), makes its scores
    comparable with the others'. The work is the same.

    For every layer: the original and the scored pass, T masked passes one by one, then
    ``n_steps`` copies of the whole prompt forward and backward, all logits computed.
    """
    rows = []
    for layer in range(case.layout.n_layers):
        with captured(case, range(layer, layer + 1)) as store:
            case.model(input_ids=case.ids, use_cache=False)
            x = store[layer]
            case.model(input_ids=case.ids, use_cache=False)
            masked = []
            for ids in masked_copies(case):
                case.model(input_ids=ids.unsqueeze(0), use_cache=False)
                masked.append(store[layer])
        baseline = torch.stack(masked).mean(0)
        points = (baseline + left_points(n_steps, x) * (x - baseline)).requires_grad_(True)
        with patched(case, layer, points):
            logits = case.model(input_ids=case.ids.repeat(n_steps, 1), use_cache=False).logits
        p = logits[:, -1].softmax(-1)[:, case.target]
        (gradient,) = torch.autograd.grad(p.sum(), points)
        factor = x if multiply_by == "activation" else x - baseline
        rows.append(array(gradient.mean(0) * factor[0]))
    return np.stack(rows)


def lean(case: Case, n_steps: int) -> np.ndarray:
    """The same without its waste: baselines of all layers in one pass, last logits only.

    Weights need no gradients, so nothing below the patched layer is differentiated.
    """
    x, baseline = endpoints(case)
    rows = []
    with frozen(case.model):
        for layer in range(case.layout.n_layers):
            delta = x[layer] - baseline[layer]
            points = (baseline[layer] + left_points(n_steps, delta) * delta).requires_grad_(True)
            p = probability(case, layer, points)
            (gradient,) = torch.autograd.grad(p.sum(), points)
            rows.append(array(gradient.mean(0) * delta))
    return np.stack(rows)


def captum(case: Case, n_steps: int) -> np.ndarray:
    """captum's ``IntegratedGradients`` on a function of the patched activation, layer by layer."""
    x, baseline = endpoints(case)
    rows = []
    with frozen(case.model):
        for layer in range(case.layout.n_layers):
            method = IntegratedGradients(lambda points, l=layer: probability(case, l, points))
            found = method.attribute(
                x[layer].unsqueeze(0),
                baselines=baseline[layer].unsqueeze(0),
                n_steps=n_steps,
                method="riemann_left",
            )
            rows.append(array(found[0]))
    return np.stack(rows)


def eleuther(case: Case, n_steps: int) -> np.ndarray:
    """As EleutherAI's ``knowledge-neurons`` does it with a GPT: from zero, both ends among them.

    In front of the non-linearity, whatever the case's site. ``n_steps`` points from 0 to 1, their
    gradients summed, divided by ``n_steps``, times x: a rule of its own, neither Riemann's nor the
    trapezoid.
    """
    case = replace(case, site="pre")
    x, _ = endpoints(case)
    rows = []
    with frozen(case.model):
        for layer in range(case.layout.n_layers):
            alpha = torch.linspace(0, 1, n_steps, dtype=torch.float64).to(x).unsqueeze(1)
            points = (alpha * x[layer]).requires_grad_(True)
            p = probability(case, layer, points)
            (gradient,) = torch.autograd.grad(p.sum(), points)
            rows.append(array(gradient.mean(0) * x[layer]))
    return np.stack(rows)


@torch.no_grad()
def endpoints(case: Case) -> tuple[Tensor, Tensor]:
    """x and x' of every layer, ``[L, F]`` each, from one clean and one batched masked pass."""
    layers = range(case.layout.n_layers)
    with captured(case, layers) as store:
        case.layout.base(input_ids=case.ids, use_cache=False)
        x = torch.stack([store[l][0] for l in layers])
        case.layout.base(input_ids=masked_copies(case), use_cache=False)
        baseline = torch.stack([store[l].mean(0) for l in layers])
    return x, baseline


def probability(case: Case, layer: int, points: Tensor) -> Tensor:
    """The gold token's probability ``[n]`` with the activation patched, last logits only."""
    with patched(case, layer, points):
        ids = case.ids.repeat(len(points), 1)
        logits = case.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    gold: Tensor = logits[:, -1].softmax(-1)[:, case.target]
    return gold


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for weights inside the block."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in trainable:
            p.requires_grad_(False)
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
