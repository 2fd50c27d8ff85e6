"""Space around texts: nobody sees it, but to a tokenizer " Paris" is another answer than "Paris".

A fact's texts lose it wherever they come from, with whatever else shows nothing: marks of direction
(a path copied in Windows begins with one), control characters, empty letters. Only what lays a
prompt out stays: line breaks and tabs at its ends, as in a chat template that ends in a line break.
"""

from __future__ import annotations

import unicodedata

_LAYOUT = frozenset("\t\n\r\v\f\x85\u2028\u2029")
_UNSEEN = frozenset({"Cf", "Cc", "Zs", "Zl", "Zp"})
# Of an unseen category (Cf), yet drawn: signs of numbers, verses and abbreviations.
_SEEN = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
# Letters, marks and symbols without a picture: Hangul fillers, Khmer inherent vowels, the braille
# pattern without dots, the grapheme joiner.
_EMPTY = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5\u2800\u034f")
# These change the character in front of them: joiners, variation selectors, tags (of flags).
_ATTACHED = frozenset("\u200c\u200d").union(
    map(chr, [*range(0xFE00, 0xFE10), *range(0x180B, 0x1810)]),
    map(chr, [*range(0xE0020, 0xE0080), *range(0xE0100, 0xE01F0)]),
)


def without_space(text: str) -> str:
    """The text without space, and without other characters that show nothing, at its ends.

    Joiners and variation selectors stay behind the characters of scripts and the emoji that take
    them.
    """
    return _between(text, frozenset())


def prompt_without_space(text: str) -> str:
    """As :func:`without_space`, but with the line breaks and tabs at the text's ends."""
    return _between(text, _LAYOUT)


def _between(text: str, kept: frozenset[str]) -> str:
    start, end = 0, len(text)
    while start < end and text[start] not in kept and _shows_nothing(text[start]):
        start += 1
    while end > start and text[end - 1] not in kept and _shows_nothing(text[end - 1]):
        base = end - 1
        while text[base] in _ATTACHED:  # It ends: the first character that is left is none.
            base -= 1
        if base < end - 1 and _takes_attached(text[base]):
            break
        end = min(base + 1, end - 1)
    return text[start:end]


def _shows_nothing(character: str) -> bool:
    if character in _ATTACHED or character in _EMPTY:
        return True
    return unicodedata.category(character) in _UNSEEN and character not in _SEEN


def _takes_attached(character: str) -> bool:
    """Whether joiners and selectors mean something behind it: not in Latin, Greek or Cyrillic."""
    if character in "\u00a9\u00ae":  # Emoji, with a selector.
        return True
    is_european = character < "\u0530" or "\u1e00" <= character <= "\u1fff"
    return not (is_european or _shows_nothing(character))
