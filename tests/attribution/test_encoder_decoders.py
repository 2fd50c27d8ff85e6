"""Attribution of encoder-decoders: equal to plain loops over tokens, layers and path points."""

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
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import FLOAT64, LEFT, fixed
from tests.support.tiny import MASK_ID, relative_error
from tests.support.tiny_encoder_decoders import MODELS, asked, model_of


@contextmanager
def replaced(module: nn.Module, position: int, x: Tensor) -> Iterator[None]:
    """The module's input at one position of the only sequence is ``x``."""

    def put(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        whole = args[0].clone()
        whole.view(-1, whole.shape[-1])[position] = x
        return (whole, *args[1:])

    handle = module.register_forward_pre_hook(put)
    try:
        yield
    finally:
        handle.remove()


class Plain:
    """One model and one site, one prompt at a time, the whole model for each number."""

    def __init__(self, name: str, model: nn.Module, site: str) -> None:
        _, _, layer, parts = MODELS[name]
        self.model, self.modules = model, []
        for i in range(3):
            path = f"{layer.format(i)}.{parts.split()[site == 'pre']}"
            self.modules.append(model.get_submodule(path))

    def logits(self, source: Sequence[int], ids: Sequence[int], position: int) -> Tensor:
        inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([ids])}
        found: Tensor = self.model(**inputs).logits[0, position]
        return found

    def activations(self, source: Sequence[int], ids: Sequence[int], position: int) -> Tensor:
        """``[L, F]``."""
        seen: list[Tensor] = []
        handles = [
            m.register_forward_pre_hook(
                lambda _, args: seen.append(args[0].detach().flatten(0, -2)[position])
            )
            for m in self.modules
        ]
        self.logits(source, ids, position)
        for handle in handles:
            handle.remove()
        return torch.stack(seen)

    def masked_baseline(self, one: AnswerSequence, position: int) -> Tensor:
        """Mean over the copies in which one token that the encoder reads is masked."""
        copies = []
        for j in range(len(one.source)):
            if j not in one.blank:
                source = [*one.source[:j], MASK_ID, *one.source[j + 1 :]]
                copies.append(self.activations(source, one.ids, position))
        return torch.stack(copies).mean(0)

    def scores(self, one: AnswerSequence, baseline: str) -> Tensor:
        """``[L, F]``, the mean over the answer's tokens, by S left points."""
        total = torch.zeros(3, 40, dtype=torch.float64)
        for i, target in enumerate(one.targets):
            at = one.n_prompt - 1 + i
            value = self.activations(one.source, one.ids, at)
            start = torch.zeros_like(value)
            if baseline == "masked":
                start = self.masked_baseline(one, at)
            for layer, module in enumerate(self.modules):
                for alpha, weight in zip(*LEFT, strict=True):
                    x = start[layer] + float(alpha) * (value[layer] - start[layer])
                    x.requires_grad_(True)
                    with replaced(module, at, x):
                        p = self.logits(one.source, one.ids, at).softmax(-1)[target]
                    step = torch.autograd.grad(p, x)[0]
                    total[layer] += float(weight) * step * (value - start)[layer]
        return total / len(one.targets)

    def probability(self, one: AnswerSequence) -> float:
        p = 1.0
        for i, target in enumerate(one.targets):
            at = one.n_prompt - 1 + i
            p *= self.logits(one.source, one.ids, at).softmax(-1)[target].item()
        return p


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_plain_loops(name: str, site: str, baseline: str) -> None:
    model = model_of(name)
    config = fixed(site=site, baseline=baseline)
    found = attribute_chunk(model, find_layout(model), asked(), config, mask_id=MASK_ID)
    assert found.path == "blocks"
    plain = Plain(name, model, site)
    for i, one in enumerate(asked()):
        assert found.probability[i] == pytest.approx(plain.probability(one), rel=FLOAT64)
        assert relative_error(found.scores[i], plain.scores(one, baseline)) < FLOAT64


def test_scores_do_not_depend_on_what_else_is_in_the_chunk() -> None:
    """Prompts of other lengths are not padded beside one another in the encoder."""
    model = model_of("t5")
    layout = find_layout(model)
    together = attribute_chunk(model, layout, asked(), fixed(), mask_id=MASK_ID)
    for i, one in enumerate(asked()):
        alone = attribute_chunk(model, layout, [one], fixed(), mask_id=MASK_ID)
        assert relative_error(together.scores[i], alone.scores[0]) < FLOAT64


# Above a changed activation of T5's first form are kinks, which a rule of 64 points meets.
@pytest.mark.parametrize(
    ("name", "tolerance"), [(n, 1e-3 if n.startswith("t5") else 1e-6) for n in MODELS]
)
def test_scores_add_up_to_the_change(name: str, tolerance: float) -> None:
    """Completeness: to the tolerance, p at the activation minus p at the baseline."""
    model, one = model_of(name), asked()[0]
    config = AttributionConfig(tolerance=tolerance)
    found = attribute_chunk(model, find_layout(model), [one], config, mask_id=MASK_ID)
    assert found.converged.all()
    plain, at = Plain(name, model, "post"), one.n_prompt - 1
    value, start = plain.activations(one.source, one.ids, at), plain.masked_baseline(one, at)
    for layer, module in enumerate(plain.modules):
        ends = []
        for x in (value[layer], start[layer]):
            with replaced(module, at, x):
                p = plain.logits(one.source, one.ids, at).softmax(-1)[one.targets[0]]
            ends.append(p.item())
        change = ends[0] - ends[1]
        # The tolerance is a share of the length of all layers' scores.
        allowed = 10 * tolerance * float(np.linalg.norm(found.scores[0]))
        assert found.scores[0, layer].sum() == pytest.approx(change, abs=allowed)


def test_the_encoder_reads_a_prompt_once_and_once_for_each_masked_copy() -> None:
    model, one = model_of("bart"), asked()[0]
    layout, read = find_layout(model), []
    attribute_chunk(model, layout, [one], fixed(baseline="zero"))  # a new model is tried first
    handle = model.get_encoder().register_forward_hook(
        lambda _module, args, kwargs, _out: read.append(kwargs["input_ids"].tolist()),
        with_kwargs=True,
    )
    attribute_chunk(model, layout, [one], fixed(baseline="masked"), mask_id=MASK_ID)
    Prompts(model, layout, [one]).probabilities([suppress([[0, 3], [2, 5]]), suppress([[1, 7]])])
    handle.remove()
    source = list(one.source)
    rows = [row for batch in read for row in batch if len(row) > 1]
    assert rows.count(source) == 2  # once for scores, once for edits
    copies = [row for row in rows if row != source]
    masked = [[*source[:j], MASK_ID, *source[j + 1 :]] for j in (0, 1, 3, 4)]
    assert sorted(copies) == sorted(masked)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("t5")
    model.train()
    model.encoder.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    flags = [p.requires_grad for p in model.parameters()]
    attribute_chunk(model, find_layout(model), asked(), fixed(), mask_id=MASK_ID)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
