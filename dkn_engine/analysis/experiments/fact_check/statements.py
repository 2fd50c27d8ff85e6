"""True and false statements about facts, on short queries and on longer, rewritten ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

from dkn_engine.analysis.config import Form
from dkn_engine.errors import UserError
from dkn_engine.facts.dates import in_year, undated
from dkn_engine.seeds import generator
from dkn_engine.types import Fact

FORMS: tuple[Form, ...] = get_args(Form)
_FILE = Path(__file__).resolve().parents[3] / "facts" / "packaged" / "statement_templates.jsonl"


@dataclass(frozen=True, slots=True)
class Statement:
    """A query with an answer to it.

    Attributes:
        fact_id: of the fact it is about.
        form: ``short``, the fact's prompt; ``paraphrase``, one that was not used for finding;
            ``long``, the prompt behind a neutral sentence. A date stands in front.
        prompt, answer: what is stated.
        is_true: whether it is.
    """

    fact_id: str
    form: Form
    prompt: str
    answer: str
    is_true: bool

    @property
    def sentence(self) -> str:
        return f"{self.prompt} {self.answer}."


@lru_cache
def packaged_templates(use: str) -> dict[str, dict[str, str]]:
    """The packaged templates for ``long`` queries or to ``ask`` a model, by name."""
    records = map(json.loads, _FILE.read_text(encoding="utf-8").splitlines())
    return {d["name"]: d for d in records if d["use"] == use}


def make_statements(
    chosen: Sequence[tuple[Fact, str]],
    facts: Sequence[Fact],
    forms: Sequence[Form],
    usable: Callable[[str, str], bool],
    *,
    seed: int,
    n_paraphrases: int = 0,
) -> tuple[list[Statement], Counter[str]]:
    """For each fact and form one true and one false statement, with the same two answers.

    The false answer is drawn from the fact's wrong answers; else from what was true of its subject
    at another date; else from the other answers of its relation. What is true of the same prompt,
    or of the same subject, relation and date, is never stated as false. No statement comes twice.

    Args:
        chosen: facts to be stated, with the answer that is true.
        facts: where false answers come from.
        forms: of the queries; a form that a fact does not have is left out.
        usable: whether a prompt and an answer can be encoded.
        seed: of the draws, which depend on it and the fact's id.
        n_paraphrases: how many of a fact's paraphrases were used for finding.

    Returns:
        The statements, true and false in turn, and how many facts were left out for which reason.

    Raises:
        UserError: an unknown or repeated form, or none.
    """
    if not forms or not set(forms) <= set(FORMS) or len(set(forms)) < len(forms):
        raise UserError(f"queries must be among {', '.join(FORMS)}, each once; got {list(forms)}")
    known = _Known(facts)
    found: list[Statement] = []
    said: set[tuple[str, str]] = set()
    left_out: Counter[str] = Counter()
    for fact, answer in chosen:
        prompts: dict[Form, str] = {}
        for form in forms:
            for text in _texts(fact, form, seed, n_paraphrases):
                if usable(text, answer) and text not in prompts.values():
                    prompts[form] = text
                    break
        texts = prompts.values()
        if any((text, answer) in said for text in texts):
            left_out["another fact is stated in the same words"] += 1
            continue
        false = next(
            (
                other
                for other in known.false_answers(fact, answer, seed)
                if all(usable(t, other) and (t, other) not in said for t in texts)
            ),
            None,
        )
        if not prompts or false is None:
            left_out["no wrong answer can be stated"] += 1
            continue
        for form, prompt in prompts.items():
            for stated in (answer, false):
                said.add((prompt, stated))
                found.append(Statement(fact.id, form, prompt, stated, stated == answer))
    return found, left_out


def _texts(fact: Fact, form: Form, seed: int, n_paraphrases: int) -> list[str]:
    """Prompts of a form, of which the first usable one counts."""
    if form == "paraphrase":
        return [_dated(p, fact) for p in fact.paraphrases[n_paraphrases:]]
    if form == "short":
        return [_dated(fact.prompt, fact)]
    packaged = list(packaged_templates("long").values())
    drawn = generator(seed, "long statement", fact.id).integers(len(packaged))
    return [packaged[drawn]["template"].replace("{prompt}", _dated(fact.prompt, fact))]


def _dated(prompt: str, fact: Fact) -> str:
    """Without its date, what was true in another year would not be false."""
    if fact.date is None or fact.date in prompt:
        return prompt
    return in_year(fact.date, prompt)


class _Known:
    """What a list of facts says is true, to draw false answers from."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._true: dict[tuple[str | None, ...], set[str]] = {}
        self._elsewhere: dict[tuple[str | None, ...], dict[str, None]] = {}
        for fact in facts:
            for key in _same(fact):
                self._true.setdefault(key, set()).update(map(_plain, (fact.answer, *fact.aliases)))
            for key in (topic(fact), (fact.relation,)):
                self._elsewhere.setdefault(key, {})[fact.answer] = None

    def false_answers(self, fact: Fact, answer: str, seed: int) -> Iterator[str]:
        """Candidates, the best kind first, each kind in random order."""
        true = {_plain(a) for a in (answer, fact.answer, *fact.aliases)}
        true = true.union(*(self._true.get(key, set()) for key in _same(fact)))
        dated = [] if fact.date is None else self._elsewhere.get(topic(fact), {})
        relation = [] if fact.relation is None else self._elsewhere.get((fact.relation,), {})
        kinds = {"wrong": fact.wrong_answers, "dated": dated, "relation": relation}
        for kind, answers in kinds.items():
            candidates = [a for a in answers if _plain(a) not in true]
            # Of its own, so that a further wrong answer changes no draw among the others.
            rng = generator(seed, "false answer", kind, fact.id)
            for i in rng.permutation(len(candidates)):
                yield candidates[i]


def _same(fact: Fact) -> list[tuple[str | None, ...]]:
    """Keys that facts share which are true of the same."""
    found: list[tuple[str | None, ...]] = [("prompt", _dated(fact.prompt, fact))]
    if fact.subject is not None:
        found.append(("subject", fact.subject, fact.relation, fact.date))
    return found


def topic(fact: Fact) -> tuple[str | None, ...]:
    """What facts share that differ in their date alone; TempLAMA names no subjects."""
    about = undated(fact) if fact.subject is None else fact.subject
    return ("topic", about, fact.relation)


def _plain(answer: str) -> str:
    return answer.strip().casefold()
