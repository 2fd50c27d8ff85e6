"""The year of a dated fact in front of its prompt: "In 2012, Valentino Rossi plays for".

TempLAMA's entries of one subject differ by their year and their answer alone, so that without it
they are one question with several answers.
"""

from __future__ import annotations

import dataclasses

from dkn_engine.types import Fact


def dated(fact: Fact) -> Fact:
    """The fact with its date in front of each of its prompts; as it is, if it has none."""
    if fact.date is None:
        return fact
    prompts = [in_year(fact.date, p) for p in (fact.prompt, *fact.paraphrases)]
    return dataclasses.replace(fact, prompt=prompts[0], paraphrases=tuple(prompts[1:]))


def in_year(date: str, prompt: str) -> str:
    """The prompt with the date in front, which is not put there twice."""
    return prompt if prompt.startswith(_front(date)) else f"{_front(date)}{prompt}"


def undated(fact: Fact) -> str:
    """The fact's prompt without the date that :func:`dated` puts in front."""
    return fact.prompt if fact.date is None else fact.prompt.removeprefix(_front(fact.date))


def _front(date: str) -> str:
    return f"In {date}, "
