"""Other prompts for the same fact, whose answer still comes at the end."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from dkn_engine.facts.dates import in_year, undated
from dkn_engine.facts.json_records import distinct
from dkn_engine.facts.pararel import fill_templates
from dkn_engine.facts.templama import MARK
from dkn_engine.types import Fact

_FILE = Path(__file__).resolve().parents[3] / "facts" / "packaged" / "rephrasings.jsonl"
_SUBJECT, _ANSWER = "[X]", "[Y]"


@dataclass(frozen=True, slots=True)
class Rephrasing:
    """How a dataset words a relation, and how else it can be worded.

    Attributes:
        relation: the property's number.
        pattern: the dataset's sentence with its subject [X] and answer [Y].
        rephrased: sentences with the answer at the end.
    """

    relation: str
    pattern: str
    rephrased: tuple[str, ...]

    def subject(self, prompt: str) -> str | None:
        """The subject of a prompt made from the pattern; None if it was not.

        The prompt is the sentence in front of the answer, or, where the answer comes first, the
        sentence with TempLAMA's blank.
        """
        sentence = self.pattern
        if not sentence.startswith(_ANSWER):
            sentence = sentence.partition(_ANSWER)[0].rstrip()
        before, after = sentence.replace(_ANSWER, MARK).split(_SUBJECT)
        found = re.fullmatch(f"{re.escape(before)}(.+?){re.escape(after)}", prompt)
        return None if found is None else found[1]


def rephrase(fact: Fact) -> tuple[str, ...]:
    """Other prompts for a fact, without the fact's own.

    A fact's own paraphrases (such as ParaRel's patterns) come first, and then nothing else is
    looked for. Without them, the packaged templates for the relations of TempLAMA are filled; a
    fact that names no subject must be worded as in the dataset. A date that stands in front of
    the fact's prompt stands in front of the others.

    Returns:
        Distinct prompts; none for a relation without templates.
    """
    if fact.paraphrases:
        return distinct(fact.paraphrases, without=(fact.prompt,))
    found = rephrasings().get(fact.relation or "")
    if found is None:
        return ()
    asked = undated(fact)
    subject = found.subject(asked) if fact.subject is None else fact.subject
    if subject is None:
        return ()
    others = distinct(fill_templates(found.rephrased, subject, "skip"), without=(asked,))
    if fact.date is None or asked == fact.prompt:
        return others
    return tuple(in_year(fact.date, prompt) for prompt in others)


@functools.cache
def rephrasings() -> dict[str, Rephrasing]:
    """The packaged templates, by relation."""
    lines = _FILE.read_text(encoding="utf-8").splitlines()
    found = [
        Rephrasing(**(v | {"rephrased": tuple(v["rephrased"])})) for v in map(json.loads, lines)
    ]
    return {r.relation: r for r in found}
