"""Longer forms of the same facts: neutral sentences in front, or a longer paraphrase."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from dkn_engine.seeds import generator
from dkn_engine.types import Fact

TEMPLATED, PARAPHRASE = "templated", "paraphrase"
_FILE = Path(__file__).resolve().parents[3] / "facts" / "packaged" / "long_forms.jsonl"


@lru_cache
def templates() -> dict[str, str]:
    """The packaged templates by name; ``{prompt}`` stands at the end of each."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    return {d["name"]: d["template"] for d in map(json.loads, lines)}


def known_forms() -> tuple[str, ...]:
    """``templated`` (a template drawn for each fact), ``paraphrase``, and every template alone."""
    return (TEMPLATED, PARAPHRASE, *templates())


def long_form(fact: Fact, form: str, n_tokens: Callable[[str], int], seed: int) -> Fact | None:
    """The fact under another prompt, with the same id and answer; its blank stays at the end.

    Args:
        fact: in its short form.
        form: one of :func:`known_forms`. With ``paraphrase`` the longest of the fact's paraphrases
            becomes the prompt, and what was the prompt a paraphrase.
        n_tokens: length of a text.
        seed: of the draw of a template, which depends on it and the fact's id alone.

    Returns:
        None if the fact has no paraphrase that is longer than its prompt.
    """
    if form == PARAPHRASE:
        return _paraphrased(fact, n_tokens)
    packaged = templates()
    if form == TEMPLATED:
        drawn = generator(seed, "long forms", fact.id).integers(len(packaged))
        form = list(packaged)[drawn]
    template = packaged[form]
    prompt, *others = (template.replace("{prompt}", p) for p in (fact.prompt, *fact.paraphrases))
    return dataclasses.replace(fact, prompt=prompt, paraphrases=tuple(others))


def _paraphrased(fact: Fact, n_tokens: Callable[[str], int]) -> Fact | None:
    longest = max(fact.paraphrases, key=n_tokens, default=fact.prompt)
    if n_tokens(longest) <= n_tokens(fact.prompt):
        return None
    others = (fact.prompt, *(p for p in fact.paraphrases if p != longest))
    return dataclasses.replace(fact, prompt=longest, paraphrases=others)
