"""Objectives of answers the slow way: a full forward a token, its logits read, a row an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dkn_engine.degeneracy.edits import Edit
from dkn_engine.forward.contexts import AnswerSequence
from tests.support.brute_force_edits import each_edited


def objective(
    name: str,
    model: Any,
    one: AnswerSequence,
    edit: Edit,
    *,
    kind: str,
    how: str = "mean",
    positions: str = "answer",
) -> float:
    """Of an answer with an edit where ``positions`` says, its tokens combined ``how``."""
    return objectives(name, model, one, [edit], kind=kind, how=how, positions=positions)[0]


def objectives(
    name: str,
    model: Any,
    one: AnswerSequence,
    edits: Sequence[Edit],
    *,
    kind: str,
    how: str = "mean",
    positions: str = "answer",
) -> list[float]:
    """With each of several edits: as many copies of the sequence in a forward."""

    def combined(answer: AnswerSequence) -> Tensor:
        logits = token_logits(name, model, answer, edits, positions)
        if kind == "log_probability":
            logits = logits.log_softmax(-1)
        own = torch.stack([row[:, t] for row, t in zip(logits, answer.targets, strict=True)])
        return {"mean": own.mean(0), "sum": own.sum(0), "first": own[0]}[how]

    value = combined(one)
    if kind == "logit_difference":
        value = value - torch.stack([combined(wrong) for wrong in one.against]).mean(0)
    found: list[float] = value.tolist()
    return found


def token_logits(
    name: str, model: Any, one: AnswerSequence, edits: Sequence[Edit], positions: str
) -> Tensor:
    """Float64 ``[n, P, V]`` where each of an answer's tokens is predicted."""
    first = one.n_prompt - 1
    places = one.masks or tuple(range(first, first + len(one.targets)))
    inputs = one.steps or (one.ids,) * len(places)
    rows = []
    for ids, place in zip(inputs, places, strict=True):
        where = {"answer": [place], "answer_all": list(places), "all": list(range(len(ids)))}
        with each_edited(name, model, edits, where[positions]), torch.no_grad():
            logits = model(input_ids=torch.tensor([ids] * len(edits))).logits
        rows.append(logits[:, place].double())
    return torch.stack(rows)
