"""Summary numbers worked out by hand, columns of the printed table, Markdown, JSON, empty input."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len as width

from dkn_engine.config import Config
from dkn_engine.facts.scan import scan
from dkn_engine.models.fingerprint import Identity
from dkn_engine.report import (
    Estimate,
    fact_record,
    plain,
    render_markdown,
    render_report,
    summarize,
    write_summary,
)
from dkn_engine.report.clean import clean
from dkn_engine.report.content import Column, Section, Table, number
from dkn_engine.report.files import read_summary
from dkn_engine.report.reading import DEFINITIONS
from dkn_engine.report.text import _cut, to_text
from dkn_engine.statistics.intervals import TOO_FEW, mean_interval
from dkn_engine.statistics.words import interval
from dkn_engine.store import RunDirectory
from dkn_engine.store.plan import Plan
from dkn_engine.types import Component, Drops, Fact, FactResult
from tests.support.fact_results import known

NAN = float("nan")


def make(
    fact_id: str,
    sizes: tuple[int, ...] = (),
    dkn: tuple[int, ...] = (),
    drops: tuple[float, float, float] = (NAN, NAN, NAN),
    **fields: Any,
) -> FactResult:
    """A result whose components have these sizes; two more neurons are in none of them."""
    n = sum(sizes) + 2
    known: dict[str, Any] = {
        "status": "ok",
        "prompt": f"The capital of {fact_id} is",
        "answer": "Rome",
        "probability": 0.5,
        "rank": 1,
        "neurons": np.zeros((n, 2), np.int32),
        "scores": np.zeros(n, np.float32),
        "components": tuple(Component(np.zeros((k, 2), np.int32), 0, 1, 1) for k in sizes),
        "dkn": dkn,
        "partial_drop": drops[0],
        "full_drop": drops[1],
        "redundancy": drops[2],
        "candidates": Drops(*drops) if sizes else None,
    }
    return FactResult(fact_id, **(known | fields))


RESULTS = [
    make("a", (2, 3), (0, 1), (0.2, 0.6, 2.0), controls={"random": Drops(0.01, 0.02, n=20)}),
    make(
        "b",
        (2, 2, 4),
        (0, 2),
        (0.4, 0.8, 1.5),
        candidates=Drops(0.5, 0.9, 1.0),
        controls={"random": Drops(NAN, 0.04, n=20), "unrelated": Drops(0.1, 0.7)},
        relation="P36",
        convergence_delta=np.array([-0.3, 0.1], np.float32),
        n_points=np.array([3, 7], np.int32),
        converged=False,
        path="general",
    ),
    make(
        "c",
        (5, 2),
        (),
        (0.3, 0.3, 0.5),
        relation="P36",
        convergence_delta=np.array([NAN, 0.2], np.float32),
        n_points=np.array([3, 3], np.int32),
        path="sweep",
    ),
    make("d", ()),
    make("e", (3, 3), (0, 1), (9.0, 9.0, 9.0), status="not_known", reason="rank 4"),
    FactResult("f", "skipped", "prompt is longer than the context"),
]


def test_summary_by_hand() -> None:
    s = summarize(RESULTS, seconds=3.0)
    assert s.n_facts == 6
    assert s.by_status == {"ok": 4, "not_known": 1, "skipped": 1, "error": 0}
    assert (s.n_known, s.n_degenerate, s.n_with_candidates) == (4, 2, 3)
    assert s.degenerate.mean == 0.5
    assert s.with_candidates.mean == 0.75
    assert s.neurons.mean == pytest.approx((7 + 10 + 9 + 2) / 4)
    assert s.components.mean == pytest.approx((2 + 3 + 2 + 0) / 4)
    assert s.dkn.n == 2
    assert s.dkn.drops.partial_drop.mean == pytest.approx(0.3)
    assert s.dkn.drops.full_drop.mean == pytest.approx(0.7)
    assert s.dkn.drops.redundancy.mean == pytest.approx(1.75)
    assert s.no_dkn.n == 1
    assert s.no_dkn.drops.full_drop.mean == pytest.approx(0.3)
    assert s.no_dkn.controls == {}
    assert s.candidates.n == 3
    assert s.candidates.drops.partial_drop.mean == pytest.approx((0.2 + 0.5 + 0.3) / 3)
    assert s.candidates.drops.redundancy.median == pytest.approx(1.0)
    assert s.mean_abs_convergence_delta == pytest.approx(0.2)
    assert s.max_abs_convergence_delta == pytest.approx(0.3)
    assert s.points_per_layer == 4.0
    assert s.n_not_converged == 1
    assert s.by_path == {"general": 1, "sweep": 1}
    assert s.seconds == 3.0


def held_out(single: float, full: float) -> dict[str, Drops]:
    return {"paraphrases": Drops(0.3, full, single_drop=single)}


def nulls(draws: int, passing: int, p: float, **more: Any) -> dict[str, Any]:
    return {"null": "regrouped", "null_draws": draws, "null_passing": passing, "null_p": p} | more


CHANCE = [
    make("a", (2, 3), (0, 1), controls=held_out(0.2, 0.6), **nulls(99, 0, 0.01)),
    make("b", (2, 3), (0, 1), controls=held_out(0.5, 0.6), **nulls(99, 33, 0.3)),
    make("c", (2, 3), (), controls=held_out(0.2, 0.6), **nulls(99, 66, 0.8)),
    make("d", (2, 3), (0, 1), **nulls(99, 0, 0.01)),
    make("e", (), n_paraphrases_known=2),
    make("f", (2, 3), (0, 1), status="not_known", **nulls(99, 0, 0.01)),
]


def test_what_holds_and_what_chance_finds_by_hand() -> None:
    s = summarize(CHANCE)
    # "d" has no known paraphrase; "e" has, and no components.
    assert (s.n_held_out, s.n_held_out_dkn, s.n_holding) == (4, 2, 1)
    assert s.holding.mean == 0.25
    assert s.chance is not None
    assert s.nulls == ("regrouped",)
    assert (s.chance.n, s.chance.found, s.chance.draws) == (4, 3, 99)
    assert s.chance.expected == pytest.approx(1.0)
    assert s.chance.beyond.mean == pytest.approx(0.5)
    assert (s.chance.significant, s.chance.needed) == (2, 1)
    assert s.to_dict()["chance"]["expected"] == pytest.approx(1.0)
    without = summarize(RESULTS)
    assert (without.chance, without.nulls, without.n_held_out) == (None, (), 0)


def test_headlines_say_what_holds_and_what_chance_finds() -> None:
    wide: Any = functools.partial(render_report, width=400)
    for render in (wide, render_markdown):
        text = " ".join(render(CHANCE, summarize(CHANCE)).split())
        for said in (
            "DKNs that chance finds",
            "3 found, in 4 facts",
            "DKNs that hold on held-out paraphrases",
            "25% of the 4 known facts with such paraphrases, too few facts for an interval",
        ):
            assert said in text
        assert "DKNs that chance finds" not in render(RESULTS, summarize(RESULTS))
    text = render_markdown(CHANCE, summarize(CHANCE))
    assert "2 of 3" in text  # at a false discovery rate of 5 %
    few = [make(c, (2, 3), (0, 1), **nulls(8, 0, 1 / 9)) for c in "abcdef"]
    text = " ".join(wide(few, summarize(few)).split())
    assert "8 draws give no p below 0.11: 19 or more are needed" in text


def test_rows_say_what_holds_and_the_p_of_the_null() -> None:
    lines = render_report(CHANCE, summarize(CHANCE), width=120).splitlines()
    rows = [" ".join(line.split()) for line in lines if line.startswith("The capital of")]
    assert rows == [
        "The capital of a is Rome 0.50 7 2 2+3 yes 0.01 – → –",
        "The capital of b is Rome 0.50 7 2 2+3 no 0.30 – → –",
        "The capital of c is Rome 0.50 7 2 – no 0.80 (– → –)",
        "The capital of d is Rome 0.50 7 2 2+3 – 0.01 – → –",
        "The capital of e is Rome 0.50 2 0 – no – –",
        "The capital of f is Rome 0.50 not known",
    ]


def test_controls_are_averaged_over_the_facts_that_have_them() -> None:
    controls = summarize(RESULTS).dkn.controls
    assert set(controls) == {"random", "unrelated"}
    assert controls["random"].partial_drop == Estimate.alone(0.01, 1, TOO_FEW, 0.01)
    assert controls["random"].full_drop.n == 2
    assert controls["random"].full_drop.mean == pytest.approx(0.03)
    assert controls["unrelated"].full_drop.n == 1
    assert controls["unrelated"].redundancy.n == 0


def test_relations_by_hand() -> None:
    none, p36 = summarize(RESULTS).by_relation
    assert (none.relation, none.n_facts, none.n_known, none.n_degenerate) == ("", 4, 2, 1)
    assert (none.neurons, none.full_drop) == (4.5, 0.6)
    assert (p36.relation, p36.n_facts, p36.n_known, p36.n_degenerate) == ("P36", 2, 2, 1)
    assert (p36.components, p36.partial_drop) == (2.5, 0.4)


def test_empty_input_gives_an_empty_summary() -> None:
    s = summarize([])
    assert s.n_facts == 0
    assert math.isnan(s.degenerate.mean)
    assert s.by_relation == ()
    assert "No facts." in render_report([], s)
    assert "0 facts" in render_markdown([], s)
    json.dumps(s.to_dict(), allow_nan=False)


def test_facts_without_components_are_said_to_have_none() -> None:
    results = [make("d"), FactResult("f", "error", "broken")]
    assert "nothing to suppress" in render_report(results, summarize(results))


def test_no_interval_is_printed_of_fewer_than_six_facts_or_of_equal_ones() -> None:
    """Of two values the resampled interval is their range, and looks like precision."""
    drops = dict(zip("abcdef", np.linspace(0.1, 0.3, 6), strict=True))
    six = [make(x, (2, 3), (0, 1), (drop, 0.6, 2.0)) for x, drop in drops.items()]
    two = six[:2]
    low, high = mean_interval(np.linspace(0.1, 0.3, 6))
    for render in (render_report, render_markdown):
        (row,) = [r for r in render(two, summarize(two)).splitlines() if "DKN families" in r]
        assert "[" not in row
        assert "fewer than 6 facts has no interval" in " ".join(render(two, summarize(two)).split())
        (row,) = [r for r in render(six, summarize(six)).splitlines() if "DKN families" in r]
        assert f"0.20 [{low:.2f}, {high:.2f}]" in row
        assert row.count("[") == 1  # the full drop is 0.6 on all of them
        # So are the numbers of neurons and of components.
        said = " ".join(render(six, summarize(six)).split())
        assert said.count("since all values are equal") >= 2


NASTY = {
    "wide": "日本の首都はどこですか、それはとても大きな都市である",
    "combining": "e\u0301" * 60,
    "hindi": "नमस्ते दुनिया " * 8,
    "hangul parts": "\u1112\u1161\u11ab" * 40,
    "family": "👨‍👩‍👧‍👦 ❤️ " * 10,
    "escape": "\x1b[31mred\x1b[0m\x07 " * 6,
    "direction": "\u202eabc\u2066 " * 20,
    "line breaks": "a\nb\r\nc\u2028d\x85e\tf " * 10,
    "surrogate": "\ud800" * 70,
    "full width": "ＡＢＣ" * 30,
    "zero width": "\u200b" * 50,
    "long": "x" * 500,
    "empty": "",
}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
@pytest.mark.parametrize("columns", [12, 35, 80])
def test_no_text_breaks_a_table_or_steers_the_terminal(text: str, columns: int) -> None:
    rows = [(text, 1, text, text), ("plain", 22, "x", "y")]
    names = (Column("cut", least=3, one_line=True), number("n"), "broken", Column("b", least=4))
    found = to_text([Section(text, [Table(names, rows, text, controls={0})])], width=columns)
    for line in found.splitlines():
        assert width(line) <= columns
        assert line.encode("utf-8").decode().isprintable() or "\u200c" in line or "\u200d" in line


def test_clean_by_hand() -> None:
    assert clean(" a\n\tb\u202ec\x1b[0m") == "a bc?[0m"


def test_a_table_that_is_too_wide_goes_on_below_with_its_first_column() -> None:
    table = Table(["name", *(number(f"figure {i}") for i in range(9))], [["row", *range(9)]])
    lines = to_text([Section("", [table])], width=40).splitlines()
    assert max(map(width, lines)) <= 40
    assert [line.split() for line in lines if line.startswith("row")] == [
        ["row", *"0123"],
        ["row", *"4567"],
        ["row", "8"],
    ]


def test_colours_are_there_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    sections = [Section("Title", [Table(["a"], [["x " * 60]])])]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    piped = to_text(sections)
    assert "\x1b" not in piped
    assert max(map(width, piped.splitlines())) == 80
    monkeypatch.setattr("sys.stdout", Terminal())
    shown = to_text(sections)
    assert "\x1b[1mTitle" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    plain_text = to_text(sections)
    assert "\x1b" not in plain_text
    assert max(map(width, plain_text.splitlines())) == 100


def nasty_results() -> list[FactResult]:
    nasty = list(NASTY.values())
    results = [
        make(text, (2, 2), (0, 1), (-0.123, 0.5, 1e9), prompt=text, answer=other, relation=text)
        for text, other in zip(nasty, nasty[1:] + nasty[:1], strict=True)
    ]
    many = make("many", (2,) * 12, tuple(range(12)), (0.1, 0.99, 2.0), rank=1)
    results.append(make("wild", (2, 2), (0, 1), (-123.4, -5678.9, 3.0), controls=many.controls))
    results += [many, make("big", (1500, 900, 1200), (0, 1, 2), (0.0, 1.0, 0.0))]
    results += [FactResult(t, "error", reason=t, prompt=t, answer=t) for t in nasty]
    return results


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_report_is_at_most_as_wide_as_asked_for(columns: int) -> None:
    results = nasty_results()
    report = render_report(results, summarize(results, seconds=1e6), limit=None, width=columns)
    for line in report.splitlines():
        assert width(line) <= columns, line


def facts_of(report: str) -> list[str]:
    """The lines of the table of facts."""
    lines = report.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("───")) + 1
    return lines[start : lines.index("", start)]


def test_long_prompts_lose_their_middle_and_wide_terminals_show_them_whole() -> None:
    prompts = [f"In {land}, prices are given and paid in" for land in ("Russia", "Japan")]
    results = [make(p, (2, 2), (0, 1), (0.2, 0.5, 2.0), prompt=p) for p in prompts]
    narrow, wide = (
        facts_of(render_report(results, summarize(results), width=w)) for w in (60, 140)
    )
    assert all(row.startswith(p) for row, p in zip(wide, prompts, strict=True))
    for row, prompt in zip(narrow, prompts, strict=True):
        shown = row.partition("  ")[0]
        start, _, end = shown.partition("…")
        assert prompt.startswith(start)
        assert prompt.endswith(end)
        assert abs(len(start) - len(end)) <= 1
    # Of wide letters as many as fit; an odd column is a space.
    assert [width(_cut("価格" * 9, n)) for n in (10, 11, 36)] == [10, 11, 36]


def test_a_terminal_has_a_legend_and_leaves_definitions_to_the_files() -> None:
    s = summarize(RESULTS)
    text, file = render_report(RESULTS, s, width=100), render_markdown(RESULTS, s)
    assert "DKN 3+4: two components of 3 and 4 of them." in text
    for said in DEFINITIONS:
        assert said in file
        assert said[:40] not in " ".join(text.split())
    assert "summary.md says how to read these figures." in text


def test_columns_of_the_table_are_aligned() -> None:
    results = [r for r in nasty_results() if r.status == "ok"]
    rows = facts_of(render_report(results, summarize(results), limit=None))
    assert len(rows) == len(results)
    assert len({width(row[: row.rindex(" 0.50 ") + 5]) for row in rows}) == 1


def test_table_row_by_hand() -> None:
    report = render_report(RESULTS, summarize(RESULTS), width=100)
    rows = [" ".join(line.split()) for line in facts_of(report)]
    assert rows == [
        "The capital of a is Rome 0.50 7 2 2+3 0.20 → 0.60",
        "The capital of b is Rome 0.50 10 3 2+4 0.40 → 0.80",
        "The capital of c is Rome 0.50 9 2 – (0.30 → 0.30)",
        "The capital of d is Rome 0.50 2 0 – –",
        "The capital of e is Rome 0.50 not known rank 4",
        "f – skipped prompt is longer than the context",
    ]
    assert "in brackets" in report


def test_long_tables_are_cut_and_say_so() -> None:
    results = RESULTS * 10
    for render in (render_report, render_markdown):
        report = render(results, summarize(results), limit=7)
        assert "… and 53 more facts" in report
        assert (report.count("The capital of"), report.count("prompt is")) == (6, 1)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.234, 0.119, 0.306, 9), "0.23 [0.12, 0.31]"),
        (Estimate(-0.001, -0.101, 0.001, 9), "0.00 [-0.10, 0.00]"),
        (Estimate(-12.34, -15.67, -10.01, 9), "-12.3 [-15.7, -10.0]"),
        (Estimate(-123456.7, -156789.0, -100001.0, 9), "-1.2e+05"),
        (Estimate(0.5, NAN, NAN, 1), "0.50"),
        (Estimate(NAN, NAN, NAN, 0), "–"),
    ],
)
def test_interval_fits_its_column(estimate: Estimate, text: str) -> None:
    assert interval(estimate) == text
    assert len(text) <= 20


def controlled(random: float, unrelated: float, mean: float) -> dict[str, str]:
    """The verdict on each control."""
    results = [
        make(
            f"f{i}",
            (2, 2),
            (0, 1),
            (0.2, 0.7 + i / 50, 1.5),
            controls={
                "random": Drops(0.0, random + i / 1000),
                "unrelated": Drops(0.0, unrelated + i / 1000),
                "mean_ablation": Drops(0.0, mean + i / 1000),
                "paraphrases": Drops(0.0, 0.4),
            },
        )
        for i in range(10)
    ]
    return {c.against: c.verdict for c in summarize(results).comparisons}


def test_verdicts_follow_the_controls() -> None:
    assert controlled(0.0, 0.1, 0.72) == {
        "random neurons": "higher",
        "held-out paraphrases": "higher",
        "unrelated facts": "higher",
        "mean, not zero": "higher",
    }
    assert controlled(0.9, 0.9, 0.2) == {
        "random neurons": "lower",
        "held-out paraphrases": "higher",
        "unrelated facts": "lower",
        "mean, not zero": "higher",
    }


def test_drops_that_are_equal_on_all_facts_are_told_from_controls() -> None:
    """They have no interval, and need none."""
    for drop, found in ((0.7, "higher"), (0.02, "no difference found")):
        results = [
            make(f"f{i}", (2, 2), (0, 1), (0.0, drop, 1.5), controls={"random": Drops(0.0, at)})
            for i, at in enumerate(np.linspace(0, 0.1, 6))
        ]
        (compared,) = summarize(results).comparisons
        assert compared.verdict == found


@pytest.mark.parametrize("render", [render_report, render_markdown])
def test_a_report_says_when_there_is_nothing_to_compare(render: Any) -> None:
    one = [make("a", (2, 3), (0, 1), (0.2, 0.6, 2.0), controls={"random": Drops(0.0, 0.0)})]
    said = " ".join(render(one, summarize(one)).split())
    # A terminal has no room for rows that only say so.
    assert ("DKN families minus random neurons" in said) == (render is render_markdown)
    assert "60% against 0% of the answer's probability, too few to say." in said
    assert "1 of 1, too few facts for an interval" in said
    none = [make(x, (2, 3), (), (0.2, 0.6, 2.0)) for x in "ab"]
    assert "No controls were measured" in " ".join(render(none, summarize(none)).split())


def test_markdown_escapes_what_would_break_a_table() -> None:
    result = make(
        "a|b", (2, 2), (0, 1), (0.1, 0.5, 1.0), prompt="x | *y* <z>\n`q` [k](u)", answer="_a_"
    )
    text = render_markdown([result], summarize([result]))
    assert r"| x \| \*y\* \<z\> \`q\` [k\](u) | \_a\_ |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in tables} == {7, 8}


def test_summary_files_are_written_into_a_run_directory(tmp_path: Path) -> None:
    fact = Fact("a", "The capital of a is", "Rome")
    RunDirectory.open(
        tmp_path,
        config=Config(),
        identity=Identity("abc", "demo"),
        facts=scan([fact], 128),
        plan=Plan(1, 8),
        versions={"torch": "2.13.0"},
    ).close()
    problems = [{"file": "facts.jsonl", "line": 3, "id": None, "reason": "empty answer"}]
    for _ in range(2):
        markdown, data = write_summary(tmp_path, RESULTS, summarize(RESULTS), problems=problems)
    text = markdown.read_text(encoding="utf-8")
    assert "| Model | demo (fingerprint abc) |" in text
    assert f"| {Config().hash}, in full in manifest.json |" in text
    assert "| facts.jsonl | 3 | empty answer |" in text
    assert read_summary(tmp_path) == json.loads(data.read_text())
    assert read_summary(tmp_path)["summary"]["n_degenerate"] == 2
    assert read_summary(tmp_path)["problems"] == problems
    assert not list(tmp_path.glob("*.tmp"))


def test_read_summary_of_nothing_is_empty(tmp_path: Path) -> None:
    assert read_summary(tmp_path) == {}
    (tmp_path / "summary.json").write_text("[1")
    assert read_summary(tmp_path) == {}


def test_records_have_the_objective_where_there_is_one() -> None:
    one = known("a")
    assert "objective" not in fact_record(one)
    assert "objective" not in fact_record(one)["controls"]["random"]
    assert "objective" not in fact_record(one)["candidates"]
    random = dataclasses.replace(one.controls["random"], objective=(7.0, 6.5, NAN, 6.0))
    read = dataclasses.replace(
        one, subset_objective=np.arange(8.0) ** 2, controls={"random": random}
    )
    record = json.loads(json.dumps(fact_record(read), allow_nan=False))
    assert record["objective"] == [0, 1, 16, 25]  # C1 and C3 are the DKN
    assert record["controls"]["random"]["objective"] == [7, 6.5, None, 6]
    assert "subset_objective" not in record
    every = dataclasses.replace(read, dkn=())
    assert fact_record(every)["objective"] == [0, 1, 4, 16, 49]


def test_records_are_json() -> None:
    records = json.loads(json.dumps([fact_record(r) for r in RESULTS], allow_nan=False))
    assert {"scores", "connection_weights", "subset_masks"}.isdisjoint(records[0])
    assert records[1]["dkn"] == [0, 2]
    assert records[1]["controls"]["random"]["partial_drop"] is None
    assert records[1]["max_abs_convergence_delta"] == pytest.approx(0.3)
    assert [len(c["neurons"]) for c in records[0]["components"]] == [2, 3]
    assert records[5]["probability"] is None
    assert records[5]["n_reference_packaged"] is None
    assert (records[0]["excess"], records[0]["controls"]["random"]["excess"]) == (None, None)
    assert plain({1: (np.float32(NAN), np.int64(2), math.inf)}) == {"1": [None, 2, None]}
