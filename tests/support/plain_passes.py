"""Scores and suppressions by plain forward passes, of models that have no rows: the oracle.

Of encoders, whose answers stand at masks, and of encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from tests.support.tiny import relative_error

OFF = (0, 3, 7)
_ALPHAS = (0.0, 1 / 3, 2 / 3)


def read(one: AnswerSequence) -> dict[str, Tensor]:
    """What a model is called with; of an encoder-decoder what both of its parts read."""
    ids = torch.tensor([one.ids])
    if not one.source:
        return {"input_ids": ids}
    return {"input_ids": torch.tensor([one.source]), "decoder_input_ids": ids}


def brute_force(model: Any, layout: Layout, one: AnswerSequence) -> Tensor:
    """Scores ``[L, F]`` from zero by the left rule: a whole forward and a backward a point."""
    total = torch.zeros(layout.n_layers, layout.width, dtype=torch.float64)
    for at, target in zip(one.predicted_at(), one.targets, strict=True):
        for layer, mlp in enumerate(layout.mlps):
            for alpha in _ALPHAS:
                kept: list[Tensor] = []

                def scale(
                    _m: nn.Module,
                    args: tuple[Tensor, ...],
                    at: int = at,
                    alpha: float = alpha,
                    kept: list[Tensor] = kept,
                ) -> tuple[Tensor, ...]:
                    x = args[0].detach().reshape(-1, layout.width)[at]
                    kept.extend((x, (alpha * x).requires_grad_(True)))
                    whole = args[0].reshape(-1, layout.width).clone()
                    whole[at] = kept[1]
                    return (whole.view_as(args[0]), *args[1:])

                with hooks([mlp.down.register_forward_pre_hook(scale)]):
                    logits = model(**read(one)).logits[0, at]
                p = logits.softmax(-1)[target]
                (gradient,) = torch.autograd.grad(p, kept[1])
                total[layer] += kept[0] * gradient / len(_ALPHAS)
    return total / len(one.targets)


def suppression(model: Any, layout: Layout, asked: Sequence[AnswerSequence]) -> float:
    """How far probabilities with some neurons of every layer off are from plain forwards'."""
    off = [[layer, index] for layer in range(layout.n_layers) for index in OFF]
    found = Prompts(model, layout, asked).probabilities([suppress(off)])
    expected = []
    for one in asked:
        p = 1.0
        for at, target in zip(one.predicted_at(), one.targets, strict=True):

            def clear(_m: nn.Module, args: tuple[Tensor, ...], at: int = at) -> Any:
                x = args[0].clone()
                x.view(-1, x.shape[-1])[at, list(OFF)] = 0
                return (x, *args[1:])

            with hooks([m.down.register_forward_pre_hook(clear) for m in layout.mlps]):
                logits = model(**read(one)).logits[0, at]
            p *= logits.softmax(-1)[target].item()
        expected.append(p)
    return relative_error(found[0], expected)
