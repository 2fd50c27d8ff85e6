"""The page on scores of one gradient says what the committed table says."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.science.one_pass import METHODS, OBJECTIVES, RANDOM
from tests.docs.test_committed_results import rows_of, table

PAGE = Path(__file__).parents[2] / "docs" / "one_pass.md"
NAMES = {
    "integrated_gradients": "integrated gradients, to 1e-3",
    "10 points": "the same, 10 points",
    "attribution_patching": "attribution_patching",
    "grad_drop": "grad_drop",
    "relp": "relp",
    RANDOM: "random",
}
COLUMNS = {
    "spearman_drawn": 2,
    "spearman_first": 2,
    "recall_20": 2,
    "recall_100": 2,
    "missed": 2,
    "kept": 2,
    "removed": 2,
    "seconds": 1,
}
MODELS = ("demo", "gemma3-270m")


def values(model: str, objective: str, method: str, column: str) -> list[float]:
    return [
        float(r[column])
        for r in rows_of("one_pass.csv")
        if (r["model"], r["objective"], r["method"]) == (model, objective, method)
    ]


def rounded(x: float, digits: int) -> str:
    return f"{round(x, digits) + 0.0:.{digits}f}"  # no minus in front of 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS)
def test_medians(model: str, objective: str) -> None:
    expected = [
        [
            NAMES[method],
            *(
                rounded(statistics.median(values(model, objective, method, column)), digits)
                for column, digits in COLUMNS.items()
            ),
        ]
        for method in NAMES
    ]
    assert set(NAMES) == {*METHODS, RANDOM}
    assert table(PAGE, f"| {model}, {objective} |") == expected


def wins(model: str, objective: str, one: str, other: str, column: str) -> tuple[int, int]:
    """On how many facts ``one`` is above ``other``, and of how many."""
    pairs = list(
        zip(
            *(values(model, objective, method, column) for method in (one, other)),
            strict=True,
        )
    )
    return sum(a > b for a, b in pairs), len(pairs)


def test_relp_beside_integrated_gradients_fact_by_fact() -> None:
    columns = ("spearman_first", "recall_20", "recall_100", "kept", "removed")
    expected = []
    for model in MODELS:
        for objective in OBJECTIVES:
            counts = [
                wins(model, objective, "relp", "integrated_gradients", column) for column in columns
            ]
            expected.append(
                [f"{model}, {objective}", str(counts[0][1]), *(str(won) for won, _ in counts)]
            )
    assert table(PAGE, "| RelP above integrated gradients |") == expected


def test_false_negatives() -> None:
    def missing(method: str) -> tuple[int, int]:
        found = [float(r["missed"]) for r in rows_of("one_pass.csv") if r["method"] == method]
        return sum(x > 0 for x in found), len(found)

    plain, relp, dropped = map(missing, ("attribution_patching", "relp", "grad_drop"))
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert (
        f"attribution patching misses one or more in {plain[0]} of {plain[1]} comparisons, "
        f"RelP in {relp[0]}, GradDrop in {dropped[0]}:"
    ) in text


def test_relp_by_what_goes_when_neurons_are_removed() -> None:
    pairs = [
        wins(m, o, "relp", "integrated_gradients", "removed") for m in MODELS for o in OBJECTIVES
    ]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    won, total = (sum(x) for x in zip(*pairs, strict=True))
    assert f"on {won} of {total} comparisons" in text
