"""A query with one word replaced, added or deleted; seeded, and never the words it hangs on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

from dkn_engine.analysis.config import Kind
from dkn_engine.errors import UserError
from dkn_engine.facts.blanks import MASK
from dkn_engine.seeds import generator
from dkn_engine.types import Fact

KINDS: tuple[Kind, ...] = get_args(Kind)
REPLACED, ADDED = "[REPLACED]", "[ADDED]"
_WORD = re.compile(r"\S+")
_PUNCTUATION = re.compile(r"^\W+|(['\u2019]s)?\W*$")


def perturb(fact: Fact, kind: Kind, *, seed: int = 0, draw: int = 0) -> str | None:
    """The fact's prompt with one word changed, or None if it has no word to change.

    Words are what stands between spaces. A word of the answer and the last word of the subject
    are neither replaced nor deleted (whatever their case, punctuation and possessive s), and
    nothing is added behind the last word, where the answer follows. A prompt of one word is
    refused.

    Args:
        fact: whose prompt.
        kind: ``replace`` a word by ``[REPLACED]``, ``add`` the word ``[ADDED]``, or ``delete`` one.
        seed: of the choice, which depends on it, the fact's id and ``kind`` alone.
        draw: which of the different outcomes, from 0; None when there are no more.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    words = list(_WORD.finditer(fact.prompt))
    if len(words) < 2:
        return None
    kept = _protected(fact)
    asked = [w for w in words if MASK not in w[0]]  # an encoder's blank stays, too
    places = words if kind == "add" else [w for w in asked if _plain(w[0]) not in kept]
    # Deleting either of two equal neighbours is one outcome.
    found = list(dict.fromkeys(_CHANGES[kind](fact.prompt, *w.span()) for w in places))
    order = generator(seed, "perturb", kind, fact.id).permutation(len(found))
    return found[order[draw]] if draw < len(found) else None


def _protected(fact: Fact) -> frozenset[str]:
    """Words that must stay, in their plain form."""
    words = [w for text in (fact.answer, *fact.aliases) for w in text.split()]
    if fact.subject is not None:
        words += fact.subject.split()[-1:]
    return frozenset(_plain(w) for w in words)


def _plain(word: str) -> str:
    """Without case, punctuation around it and a possessive s; what is punctuation alone stays."""
    return _PUNCTUATION.sub("", word).casefold() or word


def _delete(text: str, start: int, end: int) -> str:
    """Without the word and the space behind it; in front of it, if it is the last."""
    behind = text[end:].lstrip()
    # What ends a prompt may be a chat template's line break.
    return text[:start] + behind if behind else text[:start].rstrip() + text[end:]


_CHANGES: dict[Kind, Callable[[str, int, int], str]] = {
    "replace": lambda text, start, end: text[:start] + REPLACED + text[end:],
    "add": lambda text, start, _end: f"{text[:start]}{ADDED} {text[start:]}",
    "delete": _delete,
}
