"""Interventions the slow way: one answer token a forward of the model's own, a row a pattern."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import Edit
from dkn_engine.forward.contexts import AnswerSequence
from tests.support import tiny, tiny_encoders


def answer_probability(
    name: str, model: Any, one: AnswerSequence, edit: Edit, positions: str = "answer"
) -> float:
    """Product of the gold tokens' probabilities with an edit where ``positions`` says."""
    return answer_probabilities(name, model, one, [edit], positions)[0]


def answer_probabilities(
    name: str, model: Any, one: AnswerSequence, edits: Sequence[Edit], positions: str = "answer"
) -> list[float]:
    """With each of several edits: as many copies of the sequence in a forward."""
    first = one.n_prompt - 1
    answers = list(range(first, first + len(one.targets)))
    total = torch.ones(len(edits), dtype=torch.float64)
    for position, target in zip(answers, one.targets, strict=True):
        where = {"answer": [position], "answer_all": answers, "all": list(range(len(one.ids)))}
        with each_edited(name, model, edits, where[positions]), torch.no_grad():
            logits = model(input_ids=torch.tensor([one.ids] * len(edits))).logits[:, position]
        total *= torch.softmax(logits.double(), dim=-1)[:, target]
    found: list[float] = total.tolist()
    return found


def greedy_tokens(
    name: str, model: Any, one: AnswerSequence, edit: Edit, positions: str = "answer"
) -> tuple[int, ...]:
    """As many tokens as the answer has, each the edited model's most probable, free-running."""
    return greedy_answers(name, model, one, [edit], positions)[0]


def greedy_answers(
    name: str, model: Any, one: AnswerSequence, edits: Sequence[Edit], positions: str = "answer"
) -> list[tuple[int, ...]]:
    """With each of several edits, a row of a forward each."""
    ids = torch.tensor([one.ids[: one.n_prompt]] * len(edits))
    for _ in one.targets:
        last = ids.shape[1] - 1
        where = {"answer": [last], "answer_all": range(one.n_prompt - 1, last + 1)}
        where["all"] = range(last + 1)
        with each_edited(name, model, edits, where[positions]), torch.no_grad():
            best = model(input_ids=ids).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, best[:, None]], dim=1)
    return [tuple(row) for row in ids[:, one.n_prompt :].tolist()]


def edited(
    name: str, model: nn.Module, edit: Edit, positions: Sequence[int]
) -> contextlib.AbstractContextManager[None]:
    """The model with activation <- factor * activation + offset, of one sequence."""
    return each_edited(name, model, [edit], positions)


@contextlib.contextmanager
def each_edited(
    name: str, model: nn.Module, edits: Sequence[Edit], positions: Sequence[int]
) -> Iterator[None]:
    """The model that is asked with as many rows as there are edits, each row with its own."""
    of = tiny_encoders if name in tiny_encoders.ENCODERS else tiny
    handles = []
    for layer in sorted({layer for edit in edits for layer in edit.neurons[:, 0].tolist()}):
        hook = _hook(edits, layer, list(positions))
        handles.append(of.down_of(name, model, layer).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(edits: Sequence[Edit], layer: int, positions: list[int]) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        rows = x.view(len(edits), -1, x.shape[-1])  # [P, T, F]; OPT has no batch axis here
        for p, edit in enumerate(edits):
            own = edit.neurons[:, 0] == layer
            at = (p, *np.ix_(positions, edit.neurons[own, 1]))
            factor, offset = torch.from_numpy(edit.factor[own]), torch.from_numpy(edit.offset[own])
            rows[at] = (rows[at] * factor + offset).to(x.dtype)  # computed in float64
        return (x,)

    return hook
