"""What an analysis found, in a sentence, and what the codes of its figures mean."""

from __future__ import annotations

from collections.abc import Iterable

from dkn_engine.analysis.suite.headlines import Headline
from dkn_engine.statistics.table import Row, Table
from dkn_engine.statistics.words import cell, where, words

CODES = {
    "suppress": "activations set to a value",
    "enhance": "activations doubled",
    "answer": "at the positions that predict the answer",
    "all": "at every position",
    "clean": "the prompt as it is",
    "perturbed": "one word of the prompt changed",
    "paraphrase": "another wording, not used for finding",
    "unrelated": "up to three other facts",
    "golden": "judged by the fact's own neurons",
    "practical": "judged by neurons of other facts of the relation",
    "short": "the fact's prompt",
    "templated": "two neutral sentences, then the prompt",
    "Q_new": "the facts that were trained",
    "Q_old": "facts known before",
    "Q_au": "the trained facts in other words",
    "prob": "the model's own probability of the statement",
    "ask plain": "the model asked whether it is true",
    "top 0.01": "the hundredth of neurons that changed most",
    "top 0.05": "the twentieth of neurons that changed most",
    "C": "all candidate components",
    "none": "the model as it is",
}


def spelled_out(rows: Iterable[Row]) -> str:
    """The codes among groups and conditions of some rows, in order, with what they mean."""
    names = (name for r in rows for name in (*(v for _, v in r.conditions), r.group))
    met = dict.fromkeys(words(name) if words(name) in CODES else name for name in names)
    return "; ".join(f"{name}: {CODES[name]}" for name in met if name in CODES)


def answer(table: Table, headline: Headline) -> str:
    """The first figure that is drawn, group by group, and whether groups differ; empty if none."""
    rows = headline.rows(table)
    if not rows:
        return ""
    first = rows[0].conditions
    values = ", ".join(f"{words(r.group)} {cell(r)}" for r in rows if r.conditions == first)
    under = f" ({where(first)})" if first else ""
    tested = headline.tested or headline.figure
    tests = [
        f"{words(c.group)} minus {words(c.against)}: {c.verdict}"
        for c in table.comparisons
        if c.figure == tested and c.conditions == first
    ]
    by = f"By {words(tested)}: " if headline.tested and tests else ""
    return f"Answer: {headline.axis}{under}: {values}. {by}{'; '.join(tests) or 'Not tested'}."
