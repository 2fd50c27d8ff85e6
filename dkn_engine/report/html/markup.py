"""Text to HTML: everything is escaped but what is marked as HTML already."""

from __future__ import annotations

import html

from dkn_engine.report.text import clean


class Markup(str):
    """HTML that was made here, and is not escaped again."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Any value as HTML text or attribute; None is empty.

    White space becomes single spaces; control characters and lone surrogates, which a page cannot
    hold, become "?".
    """
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(clean("" if value is None else str(value)), quote=True))


def join(parts: list[str] | tuple[str, ...], between: str = "\n") -> Markup:
    """Pieces of HTML as one."""
    return Markup(between.join(parts))
