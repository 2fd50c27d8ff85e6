"""Interventions the slow way: one pattern and one answer token a forward of the model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import Edit
from dkn_engine.forward.contexts import AnswerSequence
from tests.support import tiny, tiny_encoders


def answer_probability(
    name: str, model: Any, one: AnswerSequence, edit: Edit, positions: str = "answer"
) -> float:
    """Product of the gold tokens' probabilities with an edit where ``positions`` says."""
    first = one.n_prompt - 1
    answers = list(range(first, first + len(one.targets)))
    total = 1.0
    for position, target in zip(answers, one.targets, strict=True):
        where = {"answer": [position], "answer_all": answers, "all": list(range(len(one.ids)))}
        with edited(name, model, edit, where[positions]), torch.no_grad():
            logits = model(input_ids=torch.tensor([one.ids])).logits[0, position]
        total *= float(torch.softmax(logits.double(), dim=-1)[target])
    return total


def greedy_tokens(
    name: str, model: Any, one: AnswerSequence, edit: Edit, positions: str = "answer"
) -> tuple[int, ...]:
    """As many tokens as the answer has, each the edited model's most probable, free-running."""
    ids = list(one.ids[: one.n_prompt])
    for _ in one.targets:
        last = len(ids) - 1
        where = {"answer": [last], "answer_all": range(one.n_prompt - 1, last + 1)}
        with edited(name, model, edit, list(where.get(positions, range(last + 1)))):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[one.n_prompt :])


@contextlib.contextmanager
def edited(name: str, model: nn.Module, edit: Edit, positions: Sequence[int]) -> Iterator[None]:
    """The model with activation <- factor * activation + offset, of one sequence, by loops."""
    handles = []
    for layer in sorted(set(edit.neurons[:, 0].tolist())):
        changes = [
            (index, factor, offset)
            for (l, index), factor, offset in zip(
                edit.neurons.tolist(), edit.factor.tolist(), edit.offset.tolist(), strict=True
            )
            if l == layer
        ]
        of = tiny_encoders if name in tiny_encoders.ENCODERS else tiny
        module = of.down_of(name, model, layer)
        handles.append(module.register_forward_pre_hook(_hook(changes, positions)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(changes: list[tuple[int, float, float]], positions: Sequence[int]) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        rows = x.view(-1, x.shape[-1])  # [T, F]; OPT has no batch axis here
        for position in positions:
            for index, factor, offset in changes:
                rows[position, index] = rows[position, index] * factor + offset
        return (x,)

    return hook
