"""Measurements side by side: what all of them ask next is answered in one climb of rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.questions import Asked, AskedSlopes
from dkn_engine.errors import FactError

T = TypeVar("T")
Question = tuple[Prompts, Asked | AskedSlopes]
# Yields questions, is sent their answers, and returns what it measured. The answer to ``Asked`` is
# probabilities, float64 ``[P, n]``; with ``objective`` a pair, of them and of its values, which are
# None where the prompts have none; that to ``AskedSlopes`` is ``Slopes``.
Measurement = Generator[Question, Any, T]


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


def _answered(asked: Mapping[int, Question]) -> dict[int, Any]:
    """The answer of each question, or its FactError, by its number; those alike in one call."""
    answers: dict[int, Any] = {}
    alike: dict[tuple[int, bool], list[int]] = {}
    for i, (prompts, one) in asked.items():
        if prompts.holds_free(one.sequences, isinstance(one, Asked) and one.objective):
            # Its tokens are each edited model's own: nothing to share, and text that may not fit.
            try:
                answers[i] = _of_prompts(prompts, [one])[0]
            except FactError as error:
                answers[i] = error
        else:
            alike.setdefault((id(prompts), isinstance(one, Asked)), []).append(i)
    for numbers in alike.values():
        found = _of_prompts(asked[numbers[0]][0], [asked[i][1] for i in numbers])
        answers |= dict(zip(numbers, found, strict=True))
    return answers


def _of_prompts(prompts: Prompts, asked: Sequence[Asked | AskedSlopes]) -> Sequence[Any]:
    """Answers of questions that are all of one kind."""
    slopes = [one for one in asked if isinstance(one, AskedSlopes)]
    if slopes:
        return prompts.gate_slopes(slopes)
    edits = [one for one in asked if isinstance(one, Asked)]
    found = prompts.with_objective(edits)
    return [both if one.objective else both[0] for one, both in zip(edits, found, strict=True)]
