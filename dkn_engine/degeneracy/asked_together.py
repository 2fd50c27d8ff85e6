"""Measurements side by side: what all of them ask next is answered in one climb of rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dkn_engine.degeneracy.edited_answers import Asked, Prompts
from dkn_engine.errors import FactError

T = TypeVar("T")
Question = tuple[Prompts, Asked]
# Yields questions, is sent their answers (probabilities ``[P, n]``), and returns what it measured.
Measurement = Generator[Question, NDArray[np.float64], T]


def together(measurements: Sequence[Measurement[T]]) -> list[T | FactError]:
    """What each measurement returns, or the FactError that ended it.

    None sees another's answers, so each returns what it would return by itself, to within the
    rounding of other batches.
    """
    results: dict[int, T | FactError] = {}
    waiting: dict[int, Question] = {}

    def go_on(i: int, step: Callable[[], Question]) -> None:
        try:
            waiting[i] = step()
        except StopIteration as end:
            results[i] = end.value
        except FactError as error:
            results[i] = error

    for i, one in enumerate(measurements):
        go_on(i, partial(next, one))
    while waiting:
        asked, waiting = waiting, {}
        for i, answer in _answered(asked).items():
            if isinstance(answer, FactError):
                go_on(i, partial(measurements[i].throw, answer))
            else:
                go_on(i, partial(measurements[i].send, answer))
    return [results[i] for i in range(len(measurements))]


def _answered(
    asked: Mapping[int, Question],
) -> dict[int, NDArray[np.float64] | FactError]:
    """The answer of each question, by its number; those to the same prompts in one call."""
    answers: dict[int, NDArray[np.float64] | FactError] = {}
    of_prompts: dict[int, tuple[Prompts, list[int]]] = {}
    for i, (prompts, one) in asked.items():
        if prompts.holds_free(one.sequences):
            # Its tokens are each edited model's own: nothing to share, and text that may not fit.
            try:
                answers[i] = prompts.answers([one])[0][0]
            except FactError as error:
                answers[i] = error
        else:
            of_prompts.setdefault(id(prompts), (prompts, []))[1].append(i)
    for prompts, numbers in of_prompts.values():
        tables = prompts.answers([asked[i][1] for i in numbers])
        answers |= {i: p for i, (p, _) in zip(numbers, tables, strict=True)}
    return answers
