"""Text in terminal columns: East Asian characters take two, combining marks none."""

from __future__ import annotations

import unicodedata

ELLIPSIS = "…"
_JOINER, _NON_JOINER = "\u200d", "\u200c"
_VARIATION_SELECTORS = ("\ufe0e", "\ufe0f")


def clean(text: str) -> str:
    """Text on one line that cannot steer a terminal.

    White space becomes single spaces; control characters (escape sequences too) and lone
    surrogates become "?". Marks on whose width terminals disagree are dropped: direction marks,
    emoji variation selectors, and joiners between emoji.
    """
    kept: list[str] = []
    for char in " ".join(text.split()):
        category = unicodedata.category(char)
        if category in {"Cc", "Cs"}:
            kept.append("?")
            continue
        between_emoji = char == _JOINER and bool(kept) and char_width(kept[-1]) == 2
        mark = category == "Cf" and char not in {_JOINER, _NON_JOINER}
        if not (between_emoji or mark or char in _VARIATION_SELECTORS):
            kept.append(char)
    return "".join(kept)


def char_width(char: str) -> int:
    """Columns of one character: 0, 1 or 2."""
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    if "\u1160" <= char <= "\u11ff":  # Vowels and finals that join the Hangul initial before.
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def width(text: str) -> int:
    """Columns of a cleaned text."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def shorten(text: str, columns: int) -> str:
    """A cleaned text in at most so many columns, an ellipsis marking what is missing."""
    if width(text) <= columns:
        return text
    kept, used = [], 0
    for char in text:
        used += char_width(char)
        if used > columns - 1:
            break
        kept.append(char)
    return ("".join(kept).rstrip() + ELLIPSIS) if columns > 0 else ""


def fit(text: str, columns: int, *, right: bool = False) -> str:
    """Any text in exactly so many columns: cleaned, shortened, padded."""
    text = shorten(clean(text), columns)
    padding = " " * (columns - width(text))
    return padding + text if right else text + padding
