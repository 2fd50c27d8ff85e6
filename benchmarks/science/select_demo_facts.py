"""Choose the packaged demo facts among stated candidates, by a stated rule, on the demo model.

A candidate passes if the first token of its answer is the model's most probable next token and
the answer's probability (the product over its tokens) is at least MIN_PROBABILITY, both on the
prompt alone; paraphrases play no part. Of those that pass, the first PER_RELATION of each relation
are kept, in the order of the candidates. The unselected sample is drawn from all candidates by a
seed, without looking at the model.

Writes dkn_engine/facts/packaged/demo.jsonl, dkn_engine/facts/packaged/demo_unselected.jsonl and
benchmarks/results/demo_selection.csv; the same files on every run.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import write_csv
from dkn_engine.config import FactsConfig
from dkn_engine.facts import write_facts
from dkn_engine.files.csv import csv_text
from dkn_engine.models.load import load_model
from dkn_engine.models.tokens import EncodedPrompt, encode_fact
from dkn_engine.types import Fact

MIN_PROBABILITY = 0.2
PER_RELATION = 4
N_WRONG = 3
N_UNSELECTED = 24
SEED = 2402
BATCH = 32

_HERE = Path(__file__).resolve().parents[1]
_CANDIDATES = _HERE / "data" / "demo_candidates.json"
_RESULTS = _HERE / "results" / "demo_selection.csv"
_PACKAGED = _HERE.parent / "dkn_engine" / "data"


@dataclasses.dataclass(frozen=True)
class Known:
    """How well the model knows a fact: rank of the first answer token, answer probability."""

    rank: int
    probability: float

    @property
    def passes(self) -> bool:
        return self.rank == 1 and self.probability >= MIN_PROBABILITY


def candidates(path: Path = _CANDIDATES) -> list[Fact]:
    """Every subject and answer of the table in the templates of its relation."""
    relations = json.loads(path.read_text(encoding="utf-8"))
    return [fact for relation in relations for fact in _of_relation(relation)]


def _of_relation(relation: dict[str, Any]) -> list[Fact]:
    name, pairs = relation["relation"], relation["facts"]
    answers = list(dict.fromkeys(answer for _, answer in pairs))
    facts = []
    for subject, answer in pairs:
        at = answers.index(answer)
        facts.append(
            Fact(
                id=f"{name}-{re.sub('[^a-z0-9]+', '-', subject.lower())}",
                prompt=_fill(relation["prompt"], subject),
                answer=answer,
                subject=subject,
                relation=name,
                paraphrases=tuple(_fill(p, subject) for p in relation["paraphrases"]),
                wrong_answers=tuple((answers[at + 1 :] + answers[:at])[:N_WRONG]),
            )
        )
    return facts


def _fill(template: str, subject: str) -> str:
    """The template about the subject; "The Louvre" loses its capital inside a sentence."""
    inside = not template.startswith("{}") and subject.startswith("The ")
    titles = "author" in template or "book" in template or "wrote" in template
    if inside and not titles:
        subject = "the " + subject.removeprefix("The ")
    return template.format(subject)


def score(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> list[Known]:
    """Rank and teacher-forced probability of every answer."""
    encoded = [
        encode_fact(tokenizer, f.prompt, f.answer, config=FactsConfig(), fact_id=f.id)
        for f in facts
    ]
    found: list[Known] = []
    for start in range(0, len(encoded), BATCH):
        found += _score_batch(model, encoded[start : start + BATCH])
    return found


def _score_batch(model: Any, batch: Sequence[EncodedPrompt]) -> list[Known]:
    rows = [[*e.prompt_ids, *e.answer_ids[:-1]] for e in batch]
    longest = max(map(len, rows))
    # Padded on the right, where a causal model's earlier positions do not look.
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits.double()
    found = []
    for e, row in zip(batch, logits, strict=True):
        first = len(e.prompt_ids) - 1
        wanted = torch.tensor(e.answer_ids)
        log_p = row[first : first + len(wanted)].log_softmax(-1)
        gold = log_p[torch.arange(len(wanted)), wanted]
        rank = 1 + int((log_p[0] > gold[0]).sum())
        found.append(Known(rank, float(gold.sum().exp())))
    return found


def select(facts: Sequence[Fact], known: Sequence[Known]) -> list[Fact]:
    """The first facts of each relation that pass."""
    kept: list[Fact] = []
    for fact, k in zip(facts, known, strict=True):
        if k.passes and sum(f.relation == fact.relation for f in kept) < PER_RELATION:
            kept.append(fact)
    return kept


def main() -> None:
    """Score the candidates, write the three files, print the table."""
    torch.set_num_threads(1)
    facts = candidates()
    model, tokenizer = load_model("demo", device="cpu")
    known = score(model, tokenizer, facts)
    kept = select(facts, known)
    write_facts(_PACKAGED / "demo.jsonl", kept)
    chosen = sorted(random.Random(SEED).sample(range(len(facts)), N_UNSELECTED))
    write_facts(_PACKAGED / "demo_unselected.jsonl", [facts[i] for i in chosen])

    rows: list[tuple[str, int, int, int]] = []
    for relation in dict.fromkeys(f.relation for f in facts):
        passing = [k.passes for f, k in zip(facts, known, strict=True) if f.relation == relation]
        n_kept = sum(f.relation == relation for f in kept)
        rows.append((str(relation), len(passing), sum(passing), n_kept))
    _, n_facts, n_passing, n_chosen = zip(*rows, strict=True)
    rows.append(("all", sum(n_facts), sum(n_passing), sum(n_chosen)))
    write_csv(_RESULTS, csv_text(("relation", "candidates", "passing", "kept"), rows))
    for name, *counts in [("relation", "candidates", "passing", "kept"), *rows]:
        print(f"{name:20}", *(f"{c:>10}" for c in counts))


if __name__ == "__main__":
    main()
