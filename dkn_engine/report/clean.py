"""Text on one line that steers neither a terminal nor a page."""

from __future__ import annotations

import unicodedata

_JOINER, _NON_JOINER = "\u200d", "\u200c"
_VARIATION_SELECTORS = ("\ufe0e", "\ufe0f")


def clean(text: str) -> str:
    """Text on one line without anything that could steer a terminal.

    White space becomes single spaces; control characters (escape sequences too) and lone
    surrogates become "?". Marks on whose width terminals disagree are dropped: direction marks,
    emoji variation selectors, and joiners between emoji.
    """
    line = " ".join(text.split())
    if line.isascii() and line.isprintable():
        return line
    kept: list[str] = []
    for char in line:
        category = unicodedata.category(char)
        if category in {"Cc", "Cs"}:
            kept.append("?")
            continue
        between_emoji = (
            char == _JOINER and bool(kept) and unicodedata.east_asian_width(kept[-1]) in "WF"
        )
        mark = category == "Cf" and char not in {_JOINER, _NON_JOINER}
        if not (between_emoji or mark or char in _VARIATION_SELECTORS):
            kept.append(char)
    return "".join(kept)
