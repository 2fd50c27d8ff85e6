"""Places in sentences that a model is to fill: how they are spelled, and where they are."""

from __future__ import annotations

import re

# How a blank is spelled in the prompts of facts that keep it.
MASK = "[MASK]"
# As other formats, tokenizers and people spell it. Two underscores in a word are part of a name.
BLANK = re.compile(r"_{3,}|(?<![\w.])__(?![\w(])|(?i:\[MASK\]|<MASK>|\[BLANK\])|\{\}|\[Y\]|_X_")
# What stands behind a prompt's end where it holds no blank, as behind most sentences.
_END = "."


def with_mask(prompt: str) -> str:
    """The prompt with its blank spelled ``[MASK]``; as it is where it has none, or several."""
    if MASK in prompt or len(BLANK.findall(prompt)) != 1:
        return prompt
    return BLANK.sub(lambda _: MASK, prompt)


def in_front_of_blank(prompt: str) -> str:
    """The prompt as far as its blank, which must be at its end, if it has one.

    Raises:
        ValueError: it is elsewhere.
    """
    if MASK not in prompt:
        return prompt
    head, _, tail = prompt.partition(MASK)
    if tail.strip(" .") or not head.strip():
        raise ValueError(f"the blank {MASK} is not at the end of {prompt!r}")
    return head.rstrip()


def around_blank(prompt: str, mask: str = MASK) -> tuple[str, str]:
    """What stands in front of a prompt's blank and behind it.

    A prompt without one is asked behind its last word, in front of a full stop.

    Args:
        prompt: with one blank, or none.
        mask: another spelling of it, a tokenizer's own. Where that or ``[MASK]`` is in the prompt,
            all else is text.

    Raises:
        ValueError: several blanks.
    """
    own = re.compile("|".join(map(re.escape, {MASK, mask})))
    found = list(own.finditer(prompt)) or list(BLANK.finditer(prompt))
    if len(found) > 1:
        raise ValueError(f"expected one blank; got {len(found)} in {prompt!r}")
    if not found:
        return f"{prompt} ", _END
    return prompt[: found[0].start()], prompt[found[0].end() :]
