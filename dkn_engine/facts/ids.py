"""Ids of facts that have none: made from their text, so that they stay when a file grows."""

from __future__ import annotations

import hashlib
import re

_WORDS = 40  # letters of the readable part
_DIGITS = 6  # of SHA-256, in hexadecimal


def made_id(prompt: str, answer: str, date: str | None = None) -> str:
    """An id of a question and its answer, as in ``the-capital-of-italy-is-rome-b294ae``.

    It follows from the three texts alone: facts that differ in any of them have ids of their own,
    wherever in whichever file they are.
    """
    words = re.sub(r"\W+", "-", f"{prompt} {answer}".casefold()).strip("-")
    if len(words) > _WORDS:
        words = words[: _WORDS + 1].rpartition("-")[0] or words[:_WORDS]
    text = "\n".join([prompt, answer, *([] if date is None else [date])])
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{words}-{digest[:_DIGITS]}".removeprefix("-")
