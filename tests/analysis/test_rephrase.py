"""Rephrased prompts keep subject and relation, end where the answer begins, and are new."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dkn_engine import Fact, load_facts
from dkn_engine.analysis.experiments.evolvability.rephrase import rephrase, rephrasings

# The relations of TempLAMA, with the sentences of its own.
RELATIONS = {
    "P54": "{} plays for",
    "P39": "{} holds the position of",
    "P108": "{} works for",
    "P102": "{} is a member of the",
    "P286": "_X_ is the head coach of {}.",
    "P69": "{} attended",
    "P488": "_X_ is the chair of {}.",
    "P6": "_X_ is the head of the government of {}.",
    "P127": "{} is owned by",
}
SUBJECTS = ["Ada Lovelace", "A.F.C. X", "St. Mary's of the", "x", "Köln [Y] (\\d+) _X_"]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the full datasets are not beside the repository"
)


def test_every_relation_has_templates() -> None:
    assert rephrasings().keys() == RELATIONS.keys()
    for found in rephrasings().values():
        assert len(set(found.rephrased)) == len(found.rephrased) >= 3
        assert found.pattern not in found.rephrased


@pytest.mark.parametrize("relation", RELATIONS)
def test_templates_are_sentences_with_their_answer_at_the_end(relation: str) -> None:
    for template in rephrasings()[relation].rephrased:
        assert re.fullmatch(r"[A-Z\[][^_]* \[Y\]\.", template)
        assert template.count("[X]") == template.count("[Y]") == 1
        assert "  " not in template
        # A verb in front of the answer, and no article that not every answer takes; TempLAMA's own
        # sentence on parties has one.
        assert re.search(
            r" (is|are|was|has|serves|plays|belongs|takes|occupies|represents|studied)\b", template
        )
        assert template.endswith(" the [Y].") == (relation == "P102")


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("relation", RELATIONS)
def test_the_subject_is_kept(relation: str, subject: str) -> None:
    prompt = RELATIONS[relation].format(subject)
    templates = rephrasings()[relation].rephrased
    expected = tuple(t.removesuffix(" [Y].").replace("[X]", subject) for t in templates)
    assert rephrase(Fact("a", prompt, "b", relation=relation)) == expected
    other = Fact("a", "In other words:", "b", subject=subject, relation=relation)
    assert rephrase(other) == expected


def test_a_date_in_front_stays_in_front() -> None:
    plain = Fact("a", "X plays for", "b", relation="P54", date="2012")
    dated = Fact("a", "In 2012, X plays for", "b", relation="P54", date="2012")
    assert rephrase(plain) == rephrase(Fact("a", "X plays for", "b", relation="P54"))
    assert rephrase(dated) == tuple(f"In 2012, {p}" for p in rephrase(plain))


def test_own_paraphrases_are_used() -> None:
    fact = Fact("a", "X plays for", "b", relation="P54", paraphrases=("X is with", "X plays for"))
    assert rephrase(fact) == ("X is with",)


def test_a_prompt_is_never_repeated() -> None:
    fact = Fact("a", "X belongs to", "b", subject="X", relation="P127")
    found = rephrase(fact)
    assert fact.prompt not in found
    assert len(found) == len(rephrasings()["P127"].rephrased) - 1


def test_what_cannot_be_rephrased_has_no_others() -> None:
    assert rephrase(Fact("a", "X plays for", "b")) == ()
    assert rephrase(Fact("a", "The capital of X is", "b", relation="P36")) == ()
    assert rephrase(Fact("a", "X is paid by", "b", relation="P54")) == ()
    assert rephrase(Fact("a", " plays for", "b", relation="P54")) == ()


@needs_shared
def test_every_question_of_the_dataset_is_rephrased() -> None:
    """Independent of the loaders: questions as they stand in the file."""
    count: Counter[str] = Counter()
    for line in (SHARED / "templama_train.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        query, relation = entry["query"], entry["relation"]
        before, after = RELATIONS[relation].split("{}")
        subject = query.removesuffix(" _X_.")
        subject = subject.removeprefix(before).removesuffix(after)
        prompt = query if before else query.removesuffix(" _X_.")
        found = rephrase(Fact(entry["id"], prompt, "b", relation=relation))
        assert len(found) >= 3
        assert all(subject in p and p != prompt and "_X_" not in p for p in found)
        count[relation] += 1
    assert count.keys() == RELATIONS.keys()


@needs_shared
def test_loaded_questions_are_rephrased() -> None:
    for blank in ("skip", "literal"):
        facts = load_facts(SHARED / "templama_train.jsonl", blank=blank, problems=[])
        assert {f.relation for f in facts} <= RELATIONS.keys()
        assert all(len(rephrase(f)) >= 3 for f in facts)


@needs_shared
def test_pararel_facts_are_rephrased_by_its_own_patterns() -> None:
    facts = load_facts(SHARED / "pararel_capitals.json", problems=[])
    several = [f for f in facts if f.paraphrases]
    assert len(several) > 100
    assert all(rephrase(f) == f.paraphrases for f in several)


def test_demo_facts_have_their_own() -> None:
    for fact in load_facts("demo"):
        assert rephrase(fact) == fact.paraphrases != ()
