"""Attribution of encoders: equal to plain loops over tokens, layers and path points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import FLOAT64, LEFT, fixed
from tests.support.tiny import MASK_ID, N_LAYERS, WIDTH, relative_error
from tests.support.tiny_encoders import (
    ENCODERS,
    act_of,
    down_of,
    left_to_right,
    masked,
    sentences,
    tiny_encoder,
)

# DeBERTa runs by full forwards, and says so once.
pytestmark = pytest.mark.filterwarnings("ignore:.*full forward passes")


@contextmanager
def replaced(module: nn.Module, position: int, x: Tensor) -> Iterator[None]:
    """The module's input at one position of the only sentence is ``x``."""

    def put(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        whole = args[0].clone()
        whole[0, position] = x
        return (whole, *args[1:])

    handle = module.register_forward_pre_hook(put)
    try:
        yield
    finally:
        handle.remove()


class Plain:
    """One model and one site, one sentence at a time, one forward a number that is needed."""

    def __init__(self, name: str, model: nn.Module, site: str) -> None:
        part = down_of if site == "post" else act_of
        self.model, self.modules = model, [part(name, model, i) for i in range(N_LAYERS)]

    def logits(self, ids: Sequence[int], position: int) -> Tensor:
        found: Tensor = self.model(input_ids=torch.tensor([ids])).logits[0, position]
        return found

    def activations(self, ids: Sequence[int], position: int) -> Tensor:
        """``[L, F]``."""
        seen: list[Tensor] = []
        handles = [
            m.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, position].detach()))
            for m in self.modules
        ]
        self.logits(ids, position)
        for handle in handles:
            handle.remove()
        return torch.stack(seen)

    def masked_baseline(self, ids: Sequence[int], position: int, answer: Sequence[int]) -> Tensor:
        """Mean over the copies in which one token that is not the answer's is masked."""
        others = [j for j in range(len(ids)) if j not in answer]
        copies = [self.activations([*ids[:j], MASK_ID, *ids[j + 1 :]], position) for j in others]
        return torch.stack(copies).mean(0)

    def scores(self, one: AnswerSequence, baseline: str = "masked") -> Tensor:
        """``[L, F]``, the mean over the answer's tokens, by S left points."""
        total = torch.zeros(N_LAYERS, WIDTH, dtype=torch.float64)
        inputs = one.steps or (one.ids,) * len(one.targets)
        for ids, at, target in zip(inputs, one.masks, one.targets, strict=True):
            value = self.activations(ids, at)
            start = torch.zeros_like(value)
            if baseline == "masked":
                start = self.masked_baseline(ids, at, one.masks)
            for layer, module in enumerate(self.modules):
                for alpha, weight in zip(*LEFT, strict=True):
                    x = start[layer] + float(alpha) * (value[layer] - start[layer])
                    x.requires_grad_(True)
                    with replaced(module, at, x):
                        p = self.logits(ids, at).softmax(-1)[target]
                    step = torch.autograd.grad(p, x)[0]
                    total[layer] += float(weight) * step * (value - start)[layer]
        return total / len(one.targets)

    def probability(self, one: AnswerSequence) -> float:
        inputs = one.steps or (one.ids,) * len(one.targets)
        rows = zip(inputs, one.masks, one.targets, strict=True)
        return float(np.prod([self.logits(i, at).softmax(-1)[t].item() for i, at, t in rows]))


CASES = [(name, site) for name in ENCODERS for site in ("post", "pre")]


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize(("name", "site"), CASES)
def test_scores_are_those_of_plain_loops(name: str, site: str, baseline: str) -> None:
    model = tiny_encoder(name)
    config = fixed(site=site, baseline=baseline)
    found = attribute_chunk(model, find_layout(model), sentences(), config, mask_id=MASK_ID)
    # Between DeBERTa's first two layers is a convolution, where it has one.
    assert found.path == ("general" if name == "deberta_v2" else "blocks")
    plain = Plain(name, model, site)
    for i, one in enumerate(sentences()):
        assert found.probability[i] == pytest.approx(plain.probability(one), rel=FLOAT64)
        assert relative_error(found.scores[i], plain.scores(one, baseline)) < FLOAT64


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_tokens_predicted_from_left_to_right(name: str) -> None:
    model, some = tiny_encoder(name), [left_to_right(one) for one in sentences()]
    found = attribute_chunk(model, find_layout(model), some, fixed(), mask_id=MASK_ID)
    plain = Plain(name, model, "post")
    for i, one in enumerate(some):
        assert found.probability[i] == pytest.approx(plain.probability(one), rel=FLOAT64)
        assert relative_error(found.scores[i], plain.scores(one)) < FLOAT64
    apart = Plain(name, model, "post").scores(sentences()[0])
    assert relative_error(found.scores[0], apart) > 1e-3


def test_scores_do_not_depend_on_what_else_is_in_the_chunk() -> None:
    """Sentences of other lengths are not padded beside one another."""
    model = tiny_encoder("bert")
    together = attribute_chunk(model, find_layout(model), sentences(), fixed(), mask_id=MASK_ID)
    for i, one in enumerate(sentences()):
        alone = attribute_chunk(model, find_layout(model), [one], fixed(), mask_id=MASK_ID)
        assert relative_error(together.scores[i], alone.scores[0]) < FLOAT64


@pytest.mark.parametrize("name", ENCODERS)
def test_scores_add_up_to_the_change(name: str) -> None:
    """Completeness: to the tolerance, p at the activation minus p at the baseline."""
    model, one = tiny_encoder(name), masked(3, 1, 2)
    config = AttributionConfig(tolerance=1e-6)
    found = attribute_chunk(model, find_layout(model), [one], config, mask_id=MASK_ID)
    assert found.converged.all()
    plain, at = Plain(name, model, "post"), one.masks[0]
    value = plain.activations(one.ids, at)
    start = plain.masked_baseline(one.ids, at, one.masks)
    for layer, module in enumerate(plain.modules):
        ends = []
        for x in (value[layer], start[layer]):
            with replaced(module, at, x):
                ends.append(plain.logits(one.ids, at).softmax(-1)[one.targets[0]].item())
        change = ends[0] - ends[1]
        assert found.scores[0, layer].sum() == pytest.approx(change, abs=1e-5 * abs(change) + 1e-9)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_encoder("bert")
    model.train()
    model.bert.embeddings.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    flags = [p.requires_grad for p in model.parameters()]
    attribute_chunk(model, find_layout(model), sentences(), fixed(), mask_id=MASK_ID)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
