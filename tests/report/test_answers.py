"""First sentences of a report: what was found, beside chance, other wordings, random neurons."""

from __future__ import annotations

from typing import Any

import pytest

from dkn_engine.report import render_markdown, render_report, summarize
from dkn_engine.report.answers import WORDS, answers
from dkn_engine.types import Drops, FactResult
from tests.support.fact_results import known


def nulls(passing: int) -> dict[str, Any]:
    return {"null": "regrouped", "null_draws": 8, "null_passing": passing, "null_p": 0.5}


def facts(passing: int, n: int = 12, **more: Any) -> list[FactResult]:
    """Half of them with a DKN; draws differ by one, so that there is an interval."""
    return [
        known(str(i), dkn=(0, 2) if i % 2 else (), seed=i, **nulls(passing + i % 3 // 2), **more)
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (facts(0), "there are more than chance finds."),
        (facts(4), "it is not shown that there are more than chance finds."),
        (facts(7), "there are fewer than chance finds."),
        (facts(0, n=4), "too few facts to tell the two apart."),
        ([known("a")], "What chance finds was not measured."),
    ],
)
def test_dkns_stand_beside_chance(results: list[FactResult], said: str) -> None:
    first, *_ = answers(summarize(results))
    assert first.endswith(said), first


def test_found_are_counted() -> None:
    assert answers(summarize(facts(4)))[0].startswith(
        "Of the 12 known facts 6 have a DKN. Chance (the fact's own neurons regrouped) finds 6.5 "
    )
    assert answers(summarize([known("a")]))[0].startswith("Of the one known fact 1 has a DKN.")
    none = answers(summarize([known("a", dkn=())]))[0]
    assert none.startswith("No fact has a DKN: no degenerate family of components was found in")
    unknown = answers(summarize([FactResult("a", "not_known")]))
    assert unknown == ["The model knows none of these facts, so there is nothing to say of DKNs."]
    assert answers(summarize([])) == []


def test_held_out_paraphrases_decide() -> None:
    def with_ratio(fact_id: str, redundancy: float, **more: Any) -> FactResult:
        held_out = Drops(0.2, 0.6, n=3, redundancy=redundancy, single_drop=0.1, n_redundancy=3)
        more |= {"n_paraphrases_known": 3, "controls": {"paraphrases": held_out}}
        return known(fact_id, **more)

    found = [with_ratio("a", 1.3), with_ratio("b", 1.5), with_ratio("c", 1.1, dkn=())]
    assert (
        "On held-out paraphrases 2 of 2 DKNs hold; there the median redundancy (1: independent) is "
        "1.40 with a DKN, 1.10 without one."
    ) in answers(summarize(found))
    without = answers(summarize([known("a", controls={})]))
    assert without[1:] == ["No fact with a DKN has a held-out paraphrase that the model knows."]


def test_words_are_defined_in_files_and_on_pages_only() -> None:
    results = facts(4)
    summary = summarize(results)
    markdown, text = render_markdown(results, summary), render_report(results, summary)
    for word in WORDS:
        start = word.partition(":")[0]
        assert f"- {start}:" in markdown
        assert f"- {start}:" not in text
    assert " ".join(text.split()).count(answers(summary)[0]) == 1
