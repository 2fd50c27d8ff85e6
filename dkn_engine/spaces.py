"""Space around texts: nobody sees it, but to a tokenizer " Paris" is another answer than "Paris".

A fact's texts lose it wherever they come from. Only what lays a prompt out stays: line breaks and
tabs at its ends, as in a chat template that ends in a line break.
"""

from __future__ import annotations

# Of no width, yet not space to ``str.isspace``: zero width space, word joiner, mark of byte
# order, soft hyphen, and the marks of direction. (Joiners belong to the words of some languages.)
_INVISIBLE = frozenset("\u200b\u2060\ufeff\u00ad\u200e\u200f\u061c")
_LAYOUT = frozenset("\t\n\r\v\f\x85\u2028\u2029")


def without_space(text: str) -> str:
    """The text without space of any kind at its ends."""
    return _between(text, frozenset())


def prompt_without_space(text: str) -> str:
    """The text without space at its ends, but with the line breaks and tabs that end it."""
    return _between(text, _LAYOUT)


def _between(text: str, kept: frozenset[str]) -> str:
    def goes(character: str) -> bool:
        return (character.isspace() or character in _INVISIBLE) and character not in kept

    start, end = 0, len(text)
    while start < end and goes(text[start]):
        start += 1
    while end > start and goes(text[end - 1]):
        end -= 1
    return text[start:end]
