"""Defaults and docs say what the committed result tables say; README: test_readme_figures."""

from __future__ import annotations

import csv
import dataclasses
import re
import statistics
from pathlib import Path

import pytest

from dkn_engine.topology import ClustererOptions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ENGINE = ("blocks, same points", "blocks, adaptive at 1e-3")
RESULTS_PAGE = ROOT / "docs" / "results.md"


def rows_of(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_of_encoders_has_the_measured_speed() -> None:
    rows = {(r["provider"], r["metric"]): float(r["median"]) for r in rows_of("encoder.csv")}
    shown = table(ROOT / "docs" / "howto" / "encoders.md", "| one fact of 12 tokens")
    for name, cells in zip(("published", *ENGINE), shown, strict=True):
        assert float(cells[1]) == float(f"{rows[name, 'seconds_per_fact']:.2g}")
        ratio = rows.get((f"published / {name}", "ratio"), 1.0)
        assert float(cells[2]) == float(f"{ratio:.2g}")


def test_the_page_of_models_has_what_rounding_inputs_does() -> None:
    rows = {(r["provider"], r["metric"]): float(r["median"]) for r in rows_of("int8_inputs.csv")}
    names = ("weights unpacked", "int8, threshold 6", "int8, threshold 0")
    metrics = ("change_of_p_in_a_batch", "completeness_error_of_length", "distance_of_scores")
    shown = table(ROOT / "docs" / "models.md", "| demo model |")
    for name, cells in zip(names, shown, strict=True):
        assert cells[0].startswith(name)
        for metric, cell in zip(metrics, cells[1:], strict=True):
            value = rows[name, metric]
            expected = f"{value:.0%}".replace("%", " %") if value > 0.01 else f"{value:.0e}"
            assert cell == ("0" if value == 0 else expected)


def test_the_page_of_speed_has_the_measured_blocks() -> None:
    of = {(r["case"], r["provider"]): float(r["median"]) for r in rows_of("blocks.csv")}
    short, long = (of[f"left_20_T{t}", "full forwards / blocks"] for t in (12, 48))
    whole = {f"{of[f'left_20_T{t}', 'full forwards / whole blocks']:.1f}" for t in (12, 48)}
    said = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    assert f"{short:.1f} times as fast as full forward passes for a prompt of 12 tokens" in said
    assert f"and {long:.1f} times for one of 48" in said
    assert whole == {"1.4"}
    assert "1.4 times as whole sequences" in said


def test_the_page_of_the_search_has_the_measured_time() -> None:
    of = {r["provider"]: float(r["median"]) for r in rows_of("search_time.csv")}
    said = " ".join((ROOT / "docs" / "covering_groups.md").read_text(encoding="utf-8").split())
    assert f"{of['at once']:.2f} s a fact at once and {of['one by one']:.2f} s one by one" in said


def table(path: Path, header: str) -> list[list[str]]:
    """Cells of the first Markdown table whose header begins so, without markup."""
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(header):
            break
    else:
        pytest.fail(f"{path.name} has no table that begins {header!r}")
    next(lines)
    cells = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells.append([re.sub(r"[*`]", "", c).strip() for c in line.strip("|").split("|")])
    return cells


@pytest.mark.parametrize("clusterer", ["dbscan", "hdbscan", "hierarchical", "kmeans"])
def test_defaults_of_clusterers_are_what_the_rule_picks(clusterer: str) -> None:
    tried = [r for r in rows_of("clusterers_tuning.csv") if r["clusterer"] == clusterer]
    enough = [r for r in tried if float(r["with_candidates"]) >= 0.9]
    best = max(enough or tried, key=lambda r: float(r["degenerate"]))
    chosen = dict(pair.split("=") for pair in best["settings"].split())
    defaults = dataclasses.asdict(ClustererOptions())
    assert {name: str(defaults[name]) for name in chosen} == chosen


def number(text: str, places: int) -> str:
    """As in the documents: rounded, a dash for what is not defined."""
    return "–" if text in {"", "nan"} else f"{float(text):.{places}f}"


def drops(partial: str, full: str) -> str:
    texts = number(partial, 2), number(full, 2)
    return "–" if texts == ("–", "–") else " → ".join(texts)


def test_the_page_on_the_published_code_shows_the_measured_departures() -> None:
    found = table(ROOT / "docs" / "released.md", "| departure")
    expected = [
        [
            r["departure"],
            r["known"],
            number(r["neurons"], 0),
            number(r["components"], 1),
            r["two_or_more"],
            r["with_dkn"],
            drops(r["candidates_partial"], r["candidates_full"]),
            drops(r["dkn_partial"], r["dkn_full"]),
        ]
        for r in rows_of("departures.csv")
    ]
    assert found == expected


def test_the_page_on_clusterers_shows_the_measured_ones() -> None:
    figures = {(r["method"], r["figure"]): r for r in rows_of("clusterers.csv")}

    def interval(method: str, figure: str) -> str:
        r = figures[method, figure]
        mean, low, high = (number(r[k], 2) for k in ("mean", "ci_low", "ci_high"))
        return "–" if mean == "–" else f"{mean} [{low}, {high}]"

    methods = list(dict.fromkeys(method for method, _ in figures))
    expected = []
    for m in methods:
        two = figures[m, "two_or_more"]
        expected.append(
            [
                str(round(float(two["mean"]) * int(two["n"]))),
                interval(m, "degenerate"),
                interval(m, "partial_drop"),
                interval(m, "full_drop"),
                drops(figures[m, "dkn_partial_drop"]["mean"], figures[m, "dkn_full_drop"]["mean"]),
            ]
        )
    found = table(ROOT / "docs" / "clusterers.md", "| clusterer")
    assert [row[1:] for row in found] == expected


def headline(facts: str = "demo") -> dict[str, dict[str, str]]:
    return {r["figure"]: r for r in rows_of("headline.csv") if r["facts"] == facts}


# Rows of the page's tables of drops and redundancies, by the names in headline.csv.
MEASURED = {
    "their own components": "itself",
    "random neurons, matched, up to 5 draws": "random",
    "paraphrases not used for finding": "paraphrases",
    "unrelated facts": "unrelated",
    "mean instead of zero activations": "mean_ablation",
}
FAMILIES = ("DKN", "candidates without a DKN")


def plain(text: str) -> str:
    """A rounded "-0.00" is 0.00."""
    return re.sub(r"-(0\.0+)\b", r"\1", text)


def test_the_page_of_results_counts_what_was_measured() -> None:
    def cells(facts: str) -> list[str]:
        rows = headline(facts)
        known = rows["facts known"]["n"]

        def share(figure: str) -> tuple[int, str, str]:
            mean, low, high = (100 * float(rows[figure][k]) for k in ("mean", "ci_low", "ci_high"))
            return round(mean * int(known) / 100), f"{mean:.0f}", f"[{low:.0f}, {high:.0f}]"

        def mean(figure: str, places: int) -> str:
            mean, low, high = (
                number(rows[figure][k], places) for k in ("mean", "ci_low", "ci_high")
            )
            return f"{mean} [{low}, {high}]"

        def estimate(figure: str) -> str:
            mean, low, high = (float(rows[figure][k]) for k in ("mean", "ci_low", "ci_high"))
            return f"{mean:.2f} [{low:.2f}, {high:.2f}]"

        holding = rows["DKNs that hold on held-out paraphrases"]
        several, _, _ = share("share with two or more components")
        hits, percent, interval = share("share degenerate")
        return [
            rows["facts"]["n"],
            known,
            f"{several} of {known}",
            f"{hits} of {known}: {percent} % {interval}",
            number(rows["DKNs that the null finds"]["mean"], 1),
            estimate("share degenerate beyond the null"),
            f"{float(holding['mean']):.0f} of {holding['n']}",
            mean("knowledge neurons", 0),
            mean("components", 1),
        ]

    found = table(RESULTS_PAGE, "|  | demo facts | unselected")
    assert [row[1] for row in found] == cells("demo")
    assert [row[2] for row in found] == cells("demo-unselected")


def test_the_page_of_results_shows_the_measured_drops() -> None:
    rows = headline()

    def cell(family: str, name: str, figure: str) -> str:
        r = rows[f"{family}, {name}: {figure} drop"]
        mean, low, high = (number(r[k], 2) for k in ("mean", "ci_low", "ci_high"))
        return plain(f"{mean} [{low}, {high}]")

    found = table(RESULTS_PAGE, "|  | DKNs")
    assert {row[0]: [plain(c) for c in row[1:]] for row in found} == {
        words: [cell(f, name, figure) for f in FAMILIES for figure in ("partial", "full")]
        for words, name in MEASURED.items()
    }


def test_the_page_of_results_shows_median_redundancies_with_and_without_a_dkn() -> None:
    rows = headline()

    def cell(family: str, name: str) -> str:
        ratio, excess = (rows[f"{family}, {name}: {f}"] for f in ("redundancy", "excess"))
        missing = int(excess["n"]) - int(ratio["n"])
        note = f", {missing} without" if missing else ""
        return plain(f"{number(ratio['median'], 2)} ({float(excess['median']):+.2f}{note})")

    found = table(RESULTS_PAGE, "| redundancy")
    assert found[1][0] == "paraphrases not used for finding"  # The control that decides.
    for words, *shown in found:
        assert [plain(c) for c in shown] == [cell(f, MEASURED[words]) for f in FAMILIES], words


def test_the_page_of_results_says_what_components_keep_alone_and_what_is_left_out() -> None:
    rows = headline()
    left_out = int(rows["held-out paraphrases not known"]["n"])
    every = int(rows["held-out paraphrases"]["n"]) + left_out
    sampled = rows["facts whose controls are on 32 subsets at most"]["n"]
    kept = rows["DKN, all other knowledge neurons suppressed: share kept"]["median"]
    page = " ".join(RESULTS_PAGE.read_text(encoding="utf-8").split())
    for said in (
        f"the best one keeps {100 * float(kept):.1f} % of the probability (median)",
        f"Of {every} held-out paraphrases the model does not answer {left_out}",
        f"{sampled} facts have more than five components",
    ):
        assert said in page


@pytest.mark.parametrize("figure", ["partial_drop", "full_drop", "redundancy", "excess"])
@pytest.mark.parametrize(("name", "prefix"), [("itself", ""), ("paraphrases", "paraphrases_")])
def test_headlines_are_medians_of_the_committed_facts(figure: str, name: str, prefix: str) -> None:
    per_fact = [r for r in rows_of("demo_facts.csv") if r["status"] == "ok"]
    for family, has_dkn in zip(FAMILIES, (True, False), strict=True):
        values = [float(r[prefix + figure]) for r in per_fact if bool(r["dkn_sizes"]) == has_dkn]
        there = [v for v in values if v == v]
        measured = headline()[f"{family}, {name}: {figure.replace('_', ' ')}"]
        assert int(measured["n"]) == len(there)
        # Both are rounded, to three and to four digits.
        assert float(measured["median"]) == pytest.approx(statistics.median(there), abs=0.00056)


# Rows of the page's table of analyses: file, figure, and the conditions that rows must have.
_SUPPRESSED = {"action": "suppress", "value": "zero", "on": "answer"}
_GOLDEN = {"query": "short", "facts": "with DKN"}
ANALYSES = [
    ("robustness", "drop", {**_SUPPRESSED, "query": "clean"}),
    ("robustness", "drop", {**_SUPPRESSED, "query": "perturbed"}),
    ("robustness", "drop", {**_SUPPRESSED, "query": "paraphrase"}),
    ("robustness", "recovered", {"action": "enhance", "on": "answer", "query": "perturbed"}),
    ("fact_check", "auroc", {**_GOLDEN, "setting": "golden"}),
    ("fact_check", "auroc", {**_GOLDEN, "setting": "practical"}),
    ("evolvability", "greedy_match", {"query": "Q_new", "draw": ""}),
    ("evolvability", "greedy_match", {"query": "Q_old", "draw": ""}),
    ("sharing", "shared", {"matched": "D", "with": "N", "others": "other relations"}),
]


def test_the_page_of_results_shows_what_the_example_of_the_analyses_holds() -> None:
    found = table(RESULTS_PAGE, "| analysis")
    assert len(found) == len(ANALYSES)
    for shown, (name, figure, conditions) in zip(found, ANALYSES, strict=True):
        path = ROOT / "docs" / "example" / f"{name}.csv"
        with path.open(encoding="utf-8", newline="") as file:
            rows = [r for r in csv.DictReader(file) if conditions.items() <= r.items()]
        by_group = {r["group"]: r for r in rows if r["figure"] == figure}
        for cell, group in zip(shown[2:], ("D", "N", "Rnd"), strict=True):
            numbers = [float(v) for v in re.findall(r"-?[\d.]+", cell)]
            measured = [float(by_group[group][k]) for k in ("mean", "ci_low", "ci_high")]
            # Two digits; the table has six, so that a half may fall to either side.
            assert numbers == pytest.approx(measured, abs=0.00501), (name, figure, group)


def test_the_page_on_interactions_shows_the_measured_estimates() -> None:
    every = rows_of("interactions.csv")
    rank = [float(r["spearman"]) for r in every]
    error = [float(r["rmse"]) / float(r["spread"]) for r in every]
    time = [float(r["exact_seconds"]) / float(r["gradient_seconds"]) for r in every]
    page = ROOT / "docs" / "interactions.md"
    assert [cells[1:] for cells in table(page, "| | median | worst |")] == [
        [f"{statistics.median(rank):.2f}", f"{min(rank):.2f}"],
        [f"{statistics.median(error):.2f}", f"{max(error):.2f}"],
        [f"{statistics.median(time):.1f}", f"{min(time):.1f}"],
    ]
    text = page.read_text(encoding="utf-8")
    covering, in_series = (
        statistics.median(float(r[name]) for r in every) for name in ("covering", "in_series")
    )
    assert f"On {len(every)} demo facts" in text
    assert f"{covering:.0%} cover".replace("%", " %") in text
    assert f"{in_series:.0%} are".replace("%", " %") in text
