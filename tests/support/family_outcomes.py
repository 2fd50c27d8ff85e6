"""What the engine makes of each causal architecture, beside brute force."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.guest import guest, hooks
from dkn_engine.models.layout import Layout, find_layout
from tests.support.families import families, family
from tests.support.tiny import relative_error, sequence


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture.

    Attributes:
        kind, model: of transformers: the configuration's name and the model's class.
        how: ``swept``, ``in blocks``, ``by full forward passes``, ``refused`` or ``not tried``.
        words: where the neurons are, the refusal, or why nothing was tried.
        apart: the largest relative L2 difference of scores and suppressions from brute force.
    """

    kind: str
    model: str
    how: str
    words: str
    apart: float = 0.0


_HOW = {"sweep": "swept", "blocks": "in blocks", "general": "by full forward passes"}
ASKED = (sequence(5, 2, seed=1), sequence(3, 1, seed=2))
_MOST = 160  # characters of a sentence on the page
_ALPHAS = (1 / 6, 3 / 6, 5 / 6)


def outcome(kind: str, name: str = "") -> Outcome:
    """Attribute and suppress in a tiny model of the architecture, against brute force."""
    name = name or families()[kind]
    try:
        model = _running(kind, name)
    except Exception as error:
        return Outcome(kind, name, "not tried", f"{type(error).__name__}: {_short(str(error))}")
    try:
        layout = find_layout(model)
        # With free routing a mixture of experts is as plain a function as any other model.
        rule: dict[str, Any] = {"quadrature": "riemann_middle", "n_steps": len(_ALPHAS)}
        config = AttributionConfig(baseline="zero", routing="free", **rule)
        found = attribute_chunk(model, layout, ASKED, config)
    except UnsupportedModelError as error:
        return Outcome(kind, name, "refused", _short(str(error)))
    apart = max(_scores_apart(model, layout, found.scores), _suppression_apart(model, layout))
    words = _neurons(layout)
    return Outcome(kind, name, _HOW[found.path], words, apart)


def _neurons(layout: Layout) -> str:
    """What their layer's module is called, by the first layer of each kind."""
    if not layout.mixtures:
        return layout.name_of(0, layout.mlps[0].down).replace("[0]", "[i]")
    first = min(layout.mixtures)
    experts = layout.name_of(first, layout.mixtures[first].experts).replace(f"[{first}]", "[i]")
    return f"{experts}, experts"


def _running(kind: str, name: str) -> nn.Module:
    """The model in float64; in float32 where its own code takes nothing longer."""
    try:
        model: Any = family(kind, name=name)
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the default has no float64
        return _tried(model)
    except RuntimeError:
        return _tried(family(kind, torch.float32, name))


def _tried(model: nn.Module) -> nn.Module:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(input_ids=torch.tensor([ASKED[0].ids]), use_cache=False)
    return model


def _short(text: str) -> str:
    """The first words, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _MOST else line[:_MOST].rsplit(" ", 1)[0] + " …"


def _scores_apart(model: nn.Module, layout: Layout, scores: Any) -> float:
    found = [
        relative_error(s, _brute_force(model, layout, one))
        for s, one in zip(scores, ASKED, strict=True)
    ]
    return max(found)


def _brute_force(model: nn.Module, layout: Layout, one: AnswerSequence) -> Tensor:
    """Scores ``[L, F]`` from zero by the middle rule: a forward and a backward a point."""
    total = torch.zeros(layout.n_layers, layout.width, dtype=torch.float64)
    for i, target in enumerate(one.targets):
        at = one.n_prompt - 1 + i
        for layer, mlp in enumerate(layout.mlps):
            for alpha in _ALPHAS:
                point = _point(model, mlp.down, one, at, target, alpha)
                total[layer, : len(point)] += point / len(_ALPHAS)  # a narrower layer has fewer
    return total / len(one.targets)


def _point(
    model: Any, down: nn.Module, one: AnswerSequence, at: int, target: int, alpha: float
) -> Tensor:
    """Activation ``[F]`` times the gradient of the target's probability at ``alpha`` of it."""
    kept: list[Tensor] = []

    def scale(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = args[0].reshape(-1, args[0].shape[-1])  # [T, F], whatever the shape
        x = rows[at].detach()
        kept.extend((x, (alpha * x).requires_grad_(True)))
        rows = torch.cat([rows[:at], kept[1].unsqueeze(0), rows[at + 1 :]])
        return (rows.view_as(args[0]), *args[1:])

    # As the engine shows experts, whose neurons are inputs of no module of the model's own.
    with guest(model, grad=True), hooks([down.register_forward_pre_hook(scale)]):
        logits = model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0, at]
    (gradient,) = torch.autograd.grad(torch.softmax(logits, -1)[target], kept[1])
    return (kept[0] * gradient).double()


def _suppression_apart(model: Any, layout: Layout) -> float:
    """Of the answers' probabilities with some neurons of every layer at zero."""
    off = [[layer, index] for layer in range(layout.n_layers) for index in (0, 3, 7)]
    found = Prompts(model, layout, ASKED).probabilities([suppress(off)])
    expected = [_suppressed(model, layout, one, [0, 3, 7]) for one in ASKED]
    return relative_error(found.reshape(-1), torch.tensor(expected))


def _suppressed(model: Any, layout: Layout, one: AnswerSequence, off: list[int]) -> float:
    """Probability with neurons of all layers off, for each token at the position behind it."""
    p = 1.0
    for i, target in enumerate(one.targets):
        at = one.n_prompt - 1 + i

        def clear(_m: nn.Module, args: tuple[Tensor, ...], at: int = at) -> tuple[Tensor, ...]:
            x = args[0].clone()
            x.view(-1, x.shape[-1])[at, off] = 0
            return (x, *args[1:])

        handles = [mlp.down.register_forward_pre_hook(clear) for mlp in layout.mlps]
        with guest(model, grad=False), hooks(handles):
            logits = model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0, at]
        p *= float(torch.softmax(logits.double(), -1)[target])
    return p
