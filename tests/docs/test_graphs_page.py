"""The page on graphs says what the committed table says."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from tests.docs.test_committed_results import number, rows_of, table

PAGE = Path(__file__).parents[2] / "docs" / "graphs.md"
NAMES = {
    "adjacent": "adjacent layers",
    "adjacent, gain": "adjacent layers, gain",
    "adjacent, gain, activation": "adjacent layers, gain, activation",
    "any, gain": "any two layers, gain",
    "any, gain, activation": "any two layers, gain, activation",
    "influence": "influence",
}
Line = dict[str, str]


def lines_of(facts: str) -> list[tuple[Line, Line, Line]]:
    """Own labels, permuted ones and their difference, an option each, in the table's order."""
    rows = [r for r in rows_of("graphs.csv") if r["facts"] == facts]
    options = dict.fromkeys((r["graph"], r["select"]) for r in rows)
    by = {(r["graph"], r["select"], r["labels"]): r for r in rows}
    return [(by[(*o, "own")], by[(*o, "permuted")], by[(*o, "own - permuted")]) for o in options]


def difference(line: Line) -> str:
    mean, low, high = (float(line[k]) for k in ("degenerate", "share_low", "share_high"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def start(own: Line) -> list[str]:
    tree = {"leaf": "leaves", "tree": "whole tree"}[own["select"]]
    return [NAMES[own["graph"]], tree]


def test_tuning_facts() -> None:
    assert table(PAGE, "| graph | candidates | nodes or components |") == [
        [
            *start(own),
            number(own["candidates"], 0),
            number(own["rows"], 0),
            own["degenerate"],
            permuted["degenerate"],
            difference(paired),
        ]
        for own, permuted, paired in lines_of("tuning")
    ]


def test_other_facts() -> None:
    expected = []
    for own, permuted, paired in lines_of("other"):
        for line, last in ((own, difference(paired)), (permuted, "")):
            expected.append(
                [
                    *start(line),
                    line["labels"],
                    line["degenerate"],
                    number(line["redundancy"], 2),
                    f"{line['holds']} of {line['judged']}",
                    number(line["held_out_redundancy"], 2),
                    last,
                ]
            )
    assert table(PAGE, "| graph | candidates | labels") == expected


@pytest.mark.parametrize("facts", ["tuning", "other"])
def test_the_numbers_of_facts(facts: str) -> None:
    (n,) = {line["n"] for lines in lines_of(facts) for line in lines}
    text = PAGE.read_text(encoding="utf-8")
    assert f"{n} {facts} facts" in text


def weights() -> list[list[str]]:
    """Median and quartiles of the rank correlations, a graph a line."""
    rows = rows_of("graph_weights.csv")
    found = []
    for graph, name in NAMES.items():
        low, median, high = statistics.quantiles([float(r[graph]) for r in rows], n=4)
        found.append([name, f"{median:.2f}", f"{low:.2f} to {high:.2f}"])
    return found


def test_strengths_and_interactions() -> None:
    assert table(PAGE, "| graph | median |") == weights()
    (n,) = {line["n"] for lines in lines_of("tuning") for line in lines}
    assert len(rows_of("graph_weights.csv")) == int(n)


def test_the_option_that_was_taken_to_other_facts_is_the_best_of_the_tuning_facts() -> None:
    best = max(lines_of("tuning"), key=lambda lines: float(lines[2]["degenerate"]))[0]
    taken = [(own["graph"], own["select"]) for own, _, _ in lines_of("other")]
    assert taken == list(
        dict.fromkeys([("adjacent", "leaf"), ("adjacent", "tree"), (best["graph"], best["select"])])
    )
