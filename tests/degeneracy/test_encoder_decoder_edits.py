"""Edits in encoder-decoders: equal to plain loops with one hook a neuron, the whole model each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import combine, enhance, nothing, suppress
from dkn_engine.degeneracy.questions import AskedSlopes
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.tiny_encoder_decoders import MODELS, asked, down_of, model_of

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 0}
OFF, ON = [(0, 3), (1, 5), (2, 7), (2, 8)], [(0, 4), (1, 6)]
EDITS = [suppress(OFF), enhance(ON, 2.5), combine(suppress(OFF[:1]), enhance(ON[1:], -1.0))]


@contextmanager
def changed(name: str, model: nn.Module, edit: Any, where: Sequence[int]) -> Iterator[None]:
    """Neuron by neuron, at some positions of the decoder's only sequence."""

    def hook_of(index: int, factor: float, offset: float) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0].clone()
            rows = x.view(-1, x.shape[-1])
            for at in where:
                rows[at, index] = rows[at, index] * factor + offset
            return (x,)

        return hook

    rows = zip(edit.neurons.tolist(), edit.factor.tolist(), edit.offset.tolist(), strict=True)
    handles = [
        down_of(name, model, layer).register_forward_pre_hook(hook_of(index, factor, offset))
        for (layer, index), factor, offset in rows
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain(name: str, model: Any, one: AnswerSequence, edit: Any, positions: str) -> float:
    """The product of the tokens' probabilities, each by a forward of its own."""
    product, first = 1.0, one.n_prompt - 1
    answer = range(first, first + len(one.targets))
    inputs = {"input_ids": torch.tensor([one.source]), "decoder_input_ids": torch.tensor([one.ids])}
    for at, target in zip(answer, one.targets, strict=True):
        where = {"answer": [at], "answer_all": answer, "all": range(len(one.ids))}[positions]
        with changed(name, model, edit, where), torch.no_grad():
            logits = model(**inputs).logits[0, at]
        product *= float(logits.softmax(-1)[target])
    return product


@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_those_of_plain_loops(name: str, positions: str) -> None:
    model, some = model_of(name), asked()
    prompts = Prompts(model, find_layout(model), some, positions=positions)
    found = prompts.probabilities([*EDITS, nothing()])
    expected = [[plain(name, model, s, e, positions) for s in some] for e in [*EDITS, nothing()]]
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(prompts.probability, expected[-1], **CLOSE)
    assert not prompts.stands_in


def slopes_of(name: str, model: Any, one: AnswerSequence, positions: str) -> Tensor:
    """Derivatives ``[n]`` of log p by a factor on each neuron of ``OFF``, by autograd."""
    gates = torch.ones(len(OFF), dtype=torch.float64, requires_grad=True)
    total, first = torch.zeros((), dtype=torch.float64), one.n_prompt - 1
    answer = range(first, first + len(one.targets))
    inputs = {"input_ids": torch.tensor([one.source]), "decoder_input_ids": torch.tensor([one.ids])}
    for at, target in zip(answer, one.targets, strict=True):
        where = {"answer": [at], "answer_all": answer, "all": range(len(one.ids))}[positions]

        def hook_of(n: int, index: int, where: Sequence[int] = tuple(where)) -> Any:
            def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                rows = args[0].reshape(-1, args[0].shape[-1])
                factor = torch.ones_like(rows)
                factor[list(where), index] = gates[n]
                return ((rows * factor).view_as(args[0]),)

            return hook

        handles = [
            down_of(name, model, layer).register_forward_pre_hook(hook_of(n, index))
            for n, (layer, index) in enumerate(OFF)
        ]
        total = total + model(**inputs).logits[0, at].log_softmax(-1)[target]
        for handle in handles:
            handle.remove()
    return torch.autograd.grad(total, gates)[0]


@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("name", ["t5-gated", "bart"])
def test_slopes_are_derivatives_of_plain_loops(name: str, positions: str) -> None:
    model, some = model_of(name), asked()
    prompts = Prompts(model, find_layout(model), some, positions=positions)
    asking = AskedSlopes(1, suppress(OFF), np.ones((1, len(OFF))))
    ((log_p, slopes),) = prompts.gate_slopes([asking])
    expected = slopes_of(name, model, some[1], positions)
    np.testing.assert_allclose(slopes[0], expected.numpy(), rtol=1e-7)
    assert np.exp(log_p[0]) == pytest.approx(prompts.probability[1], rel=1e-9)


def test_activations_behind_gates_are_the_models_own() -> None:
    model, one = model_of("bart"), asked()[1]
    prompts = Prompts(model, find_layout(model), [one], positions="all")
    found = prompts.gated_activations(0, suppress(OFF), np.ones((1, len(OFF))))
    inputs = {"input_ids": torch.tensor([one.source]), "decoder_input_ids": torch.tensor([one.ids])}
    for c in range(len(one.targets)):
        for n, (layer, index) in enumerate(OFF):
            seen: list[float] = []
            handle = down_of("bart", model, layer).register_forward_pre_hook(
                lambda _, args, at=one.n_prompt - 1 + c, i=index, s=seen: s.append(
                    args[0].flatten(0, -2)[at, i].item()
                )
            )
            model(**inputs)
            handle.remove()
            assert found[c, 0, n] == pytest.approx(seen[0], rel=1e-9)
