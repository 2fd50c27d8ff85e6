"""Every figure of the README and of the page on speed is in a committed table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.docs.test_committed_results import headline, plain, rows_of, table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def answers() -> dict[str, str]:
    """The table of findings, by the words of the question."""
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", text, re.MULTILINE)
    return {re.sub(r"\[(.*?)\]\([^)]*\)", r"\1", question): answer for question, answer in rows}


def answer(start: str) -> str:
    (found,) = (text for question, text in answers().items() if question.startswith(start))
    return found


def median(family: str, name: str) -> str:
    return f"{float(headline()[f'{family}, {name}: redundancy']['median']):.2f}"


def test_redundancies_are_the_measured_medians() -> None:
    dkn, none = "DKN", "candidates without a DKN"
    shown = re.findall(r"\d\.\d\d", answer("Do DKNs cover for one another"))
    assert shown == [
        median(dkn, "paraphrases"),
        median(none, "paraphrases"),
        median(dkn, "random"),
        median(dkn, "itself"),
        median(none, "itself"),
        median(dkn, "random"),
    ]


def test_dkns_stand_beside_what_the_null_finds() -> None:
    rows = headline()
    known = int(rows["facts known"]["n"])
    found = round(known * float(rows["share degenerate"]["mean"]))
    beyond = rows["share degenerate beyond the null"]
    share, low, high = (float(beyond[name]) for name in ("mean", "ci_low", "ci_high"))
    said = answer("Are there more DKNs than chance finds")
    assert f"{found} of {known}" in said
    assert f"{float(rows['DKNs that the null finds']['mean']):.1f}" in said
    assert f"{share:.2f} [{low:.2f}, {high:.2f}]" in said
    assert said.startswith("Not by more than the interval") == (low <= 0 <= high)


def test_dkns_that_hold_are_counted() -> None:
    row = headline()["DKNs that hold on held-out paraphrases"]
    assert f"{float(row['mean']):.0f} of {row['n']}" in answer("Do they hold")


def test_what_components_keep_alone() -> None:
    kept = headline()["DKN, all other knowledge neurons suppressed: share kept"]["median"]
    said = f"best one keeps {100 * float(kept):.1f} %"
    assert f"{said} of p" in answer("Do their components carry")
    assert f"{said} of it (median of ten DKNs)" in " ".join(README.read_text("utf-8").split())


def test_the_picture_is_of_what_was_measured() -> None:
    (fact,) = (r for r in rows_of("demo_facts.csv") if r["fact"] == "capital-germany")
    text = " ".join(README.read_text(encoding="utf-8").split())
    found = re.search(r"Without C1 .*? (\d+) % .*? C2 (\d+) %, without both (\d+) %", text)
    assert found is not None
    one, other, none = (int(percent) / 100 for percent in found.groups())
    assert 1 - (one + other) / 2 == pytest.approx(float(fact["partial_drop"]), abs=0.0055)
    assert 1 - none == pytest.approx(float(fact["full_drop"]), abs=0.0055)
    assert f"{fact['neurons']} knowledge neurons of one fact" in text


def test_the_tree_beside_permuted_labels() -> None:
    rows = [r for r in rows_of("graphs.csv") if r["facts"] == "other" and r["select"] == "tree"]
    own, permuted = (next(r for r in rows if r["labels"] == name) for name in ("own", "permuted"))
    said = answer("Does another graph")
    assert f"{own['degenerate']} of {own['n']} other facts" in said
    assert f"for {permuted['degenerate']} with permuted labels" in said


def recalls(method: str) -> list[int]:
    """Percent of planted groups found in given neurons, where redundancy is planted."""
    return [
        round(100 * float(r["mean"]))
        for r in rows_of("ground_truth.csv")
        if (r["method"], r["location"], r["figure"]) == (method, "given", "group recall")
        and r["planting"] in {"two", "three", "layers"}
    ]


def test_planted_groups() -> None:
    ntc, random = recalls("NTC"), recalls("random groups")
    said = answer("Does NTC find redundancy")
    assert f"{min(ntc)} to {max(ntc)} % of the groups" in said
    assert f"random groups: {min(random)} to {max(random)} %" in said
    twins = [
        float(r["mean"])
        for r in rows_of("ground_truth.csv")
        if (r["planting"], r["method"], r["figure"]) == ("twin", "NTC", "degenerate")
    ]
    assert len(twins) == 4  # two layouts, neurons given and located
    assert not any(twins)


def test_other_clusterers() -> None:
    share = {
        r["method"]: r["mean"] for r in rows_of("clusterers.csv") if r["figure"] == "degenerate"
    }
    names = {"ntc", "hierarchical", "hdbscan", "random"}
    assert names <= set(share), sorted(share)
    shown = re.findall(r"\d\.\d\d", answer("Are DKNs better than other clusterers"))
    expected = [share[name] for name in ("ntc", "hierarchical", "hdbscan", "random")]
    assert shown == [f"{float(value):.2f}" for value in expected]


def test_drops_beside_random_and_all_knowledge_neurons() -> None:
    with (ROOT / "docs/example/robustness.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {"figure": "drop", "action": "suppress", "value": "zero", "on": "answer"}
    clean = {
        r["group"]: f"{float(r['mean']):.2f} [{float(r['ci_low']):.2f}, {float(r['ci_high']):.2f}]"
        for r in rows
        if wanted.items() <= r.items() and r["query"] == "clean"
    }
    said = answer("Do DKNs matter to their facts")
    assert re.findall(r"-?\d\.\d\d \[[^]]*\]", plain(said)) == [
        plain(clean[group]) for group in ("D", "Rnd", "N")
    ]


PROVIDERS = {
    "published procedure, 20 left points": ["released"],
    "the same without its waste": ["released_lean"],
    "captum's IntegratedGradients, same points": ["captum"],
    "as EleutherAI's knowledge-neurons (zero baseline, 20 points)": ["eleuther"],
    "engine, same points, one fact / eight at once": ["dkn_engine", "dkn_engine_8"],
    "engine, adaptive at 1e-3, one fact / eight at once": ["dkn_engine", "dkn_engine_8"],
}


@pytest.mark.parametrize(
    ("page", "header", "n"),
    [("README.md", "| attribution of one fact", 4), ("docs/speed.md", "| what | seconds", 6)],
)
def test_speed_is_what_was_measured(page: str, header: str, n: int) -> None:
    seconds = {
        (r["case"], r["provider"]): float(r["median"])
        for r in rows_of("equal_points.csv")
        if r["metric"] == "seconds_per_fact"
    }
    slowest = seconds["left_20_T12", "released"]
    found = table(ROOT / page, header)
    assert len(found) == n
    for words, shown, times in found:
        case = "adaptive_T12" if "adaptive" in words else "left_20_T12"
        measured = [seconds[case, provider] for provider in PROVIDERS[words]]
        assert shown == " / ".join(f"{s:.{2 if s < 10 else 1}f}" for s in measured)
        ratios = [slowest / s for s in measured]
        assert times == " / ".join(f"{r:.1f}" if 1.05 < r < 10 else f"{r:.0f}" for r in ratios)
