"""Facts that ask the same question, with the same answer or with several, of which one is known."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

from dkn_engine.types import Fact

logger = logging.getLogger(__name__)


class SharedPrompts:
    """Counts prompts that several facts have, in little memory."""

    def __init__(self) -> None:
        self._answer: dict[int, int] = {}  # The first answer of each prompt, both hashed.
        self._n: Counter[int] = Counter()
        self._shared: set[int] = set()
        self._repeated = 0  # facts whose prompt and answer another one has had
        self._repeats: Fact | None = None  # the first of them
        self._first: Fact | None = None  # whose prompt was there before with another answer

    def watch(self, facts: Iterable[Fact]) -> Iterator[Fact]:
        """The facts, counted as they go by."""
        for fact in facts:
            prompt, answer = hash(fact.prompt), hash(fact.answer)
            self._n[prompt] += 1
            if self._answer.setdefault(prompt, answer) != answer:
                self._shared.add(prompt)
                self._first = self._first or fact
            elif self._n[prompt] > 1:
                self._repeated += 1
                self._repeats = self._repeats or fact
            yield fact

    def warn(self) -> None:
        """Log how many there are, if any, and what can be done."""
        if self._repeats is not None:
            logger.warning(
                "%s prompt and answer of another and %s computed again (the first: %r: %r)",
                f"{self._repeated} facts have" if self._repeated > 1 else "1 fact has",
                "are" if self._repeated > 1 else "is",
                self._repeats.id,
                self._repeats.prompt,
            )
        if self._first is None:
            return
        n_facts = sum(self._n[prompt] for prompt in self._shared)
        logger.warning(
            "%d facts ask %s: they share their prompts but not their answers, so that at "
            "most one of each can be known (fact %r: %r)%s",
            n_facts,
            "1 question" if len(self._shared) == 1 else f"{len(self._shared)} questions",
            self._first.id,
            self._first.prompt,
            "" if self._first.date is None else "; facts.dates=prompt puts their dates in front",
        )
