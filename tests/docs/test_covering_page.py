"""The page on covering groups says what the committed tables say."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "covering_groups.md").read_text(encoding="utf-8")
METHODS = {
    "NTC": "NTC, the default",
    "covering": "covering groups, by the prompt",
    "covering, 2 paraphrases": "covering groups, by the prompt and two paraphrases",
}
Table = Mapping[tuple[str, str], Mapping[str, str]]


@pytest.fixture(scope="module")
def summary() -> Table:
    path = ROOT / "benchmarks" / "results" / "covering_summary.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return {(row["method"], row["figure"]): row for row in csv.DictReader(file)}


def share(row: Mapping[str, str]) -> str:
    return f"{round(float(row['value']) * int(row['n']))} of {row['n']}"


def median(row: Mapping[str, str] | None) -> str:
    if row is None:
        return "–"
    value, low, high = (float(row[name]) for name in ("value", "ci_low", "ci_high"))
    # Of few facts there is no exact interval.
    return f"{value:.2f}" if low != low or high != high else f"{value:.2f} [{low:.2f}, {high:.2f}]"


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_methods(summary: Table, method: str) -> None:
    cells = [share(summary[method, name]) for name in ("degenerate", "holds", "null passing")]
    figures = ("full_drop", "redundancy", "held_out_single_drop", "held_out_full_drop")
    cells += [median(summary.get((method, name))) for name in (*figures, "held_out_redundancy")]
    assert f"| {METHODS[method]} | {' | '.join(cells)} |" in PAGE


def test_seconds(summary: Table) -> None:
    for method in ("covering", "covering, 2 paraphrases"):
        assert f"{float(summary[method, 'seconds']['value']):.1f} s" in PAGE


def test_readme(summary: Table) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (said,) = (line for line in readme.splitlines() if "docs/covering_groups.md) do better" in line)
    search, chosen = "covering", "covering, 2 paraphrases"
    n = summary[search, "degenerate"]["n"]

    def hits(method: str, figure: str) -> int:
        row = summary[method, figure]
        return round(float(row["value"]) * int(row["n"]))

    assert f"for {hits(search, 'degenerate')} of {n} other facts" in said
    assert f"NTC does for {hits('NTC', 'degenerate')} and" in said
    assert hits(search, "null passing") == 0
    assert (
        f"{hits(chosen, 'holds')} of {n} hold on others, with none {hits(search, 'holds')}" in said
    )
    redundancy = [float(summary[m, "held_out_redundancy"]["value"]) for m in (chosen, search)]
    with (ROOT / "benchmarks/results/ground_truth.csv").open(encoding="utf-8", newline="") as file:
        planted = [
            float(row["mean"])
            for row in csv.DictReader(file)
            if (row["planting"], row["method"]) == ("independent", "covering groups")
            and (row["location"], row["figure"]) == ("given", "redundancy")
        ]
    assert [f"{value:.1f}" for value in planted] == ["1.6"]
    assert max(redundancy) < planted[0]
    assert "(1.6)" in said
    assert f"Redundancy there: {redundancy[0]:.2f}, {redundancy[1]:.2f} " in said
