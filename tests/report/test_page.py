"""Pages parsed again: whole, safe, self-contained, usable on a phone; every fact on its card."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import re
import tracemalloc
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkn_engine.neurons import adjacent_pairs
from dkn_engine.report import Summary, render_markdown, summarize
from dkn_engine.report.cards import fact_cards
from dkn_engine.report.content import (
    Figure,
    Figures,
    Fold,
    Link,
    Paragraph,
    Points,
    Report,
    Section,
    Table,
    Tile,
    Tiles,
    number,
)
from dkn_engine.report.figures import files as figure_files
from dkn_engine.report.figures import to_svg
from dkn_engine.report.html import files, render_page, write_page
from dkn_engine.report.reading import versions_text
from dkn_engine.report.run import run_report
from dkn_engine.topology.arrays import component
from dkn_engine.types import Component, Drops, FactResult
from tests.report.test_figures import some_bars
from tests.support.fact_results import known, several
from tests.support.pages import Element, Page, drawing, read

MANIFEST: dict[str, Any] = {
    "model": {"name": "tiny <model>", "fingerprint": "abc"},
    "created": "2026-11-24T10:00:00+00:00",
    "config_hash": "123",
    "facts": {"n": 1},
    "config": {"seed": 7, "note": "</pre><script>"},
    "versions": {"torch": "2.13"},
}
DEMO_FACTS = Path(__file__).parents[2] / "benchmarks" / "results" / "demo_facts.csv"
HOSTILE = "<script>alert('x')</script> & \"quotes\" \x1b[31m\ud800 $x$"


@pytest.fixture
def _without_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two files of a figure, the page holds the drawing alone; pixels take half the time."""
    monkeypatch.setattr(figure_files, "to_png", lambda _: b"")


def cards(root: Element) -> list[Element]:
    return root.all("details", kind="card")


def render_run(results: list[FactResult], summary: Summary, **more: Any) -> str:
    return render_page(run_report(summary, fact_cards(results, {}, 200), **more))


def run_page(results: list[FactResult], **more: Any) -> Element:
    return read(render_run(results, summarize(results), manifest=MANIFEST, **more))


def described(card: Element) -> dict[str, str]:
    (about,) = card.all("dl")
    names, values = about.all("dt"), about.all("dd")
    return dict(zip([n.text for n in names], [v.text for v in values], strict=True))


def grid(box: Element) -> list[list[str]]:
    (table,) = box.all("table")
    return [[c.text for c in row.children] for row in table.all("tr")]


def test_every_fact_has_one_card_with_its_status() -> None:
    results = several()
    root = run_page(results)
    assert [c.attributes["id"] for c in cards(root)] == [f"fact-{i}" for i in range(1, 8)]
    assert [described(c)["Fact"] for c in cards(root)] == list("abcdefg")
    kinds = ["dkn", "no_dkn", "dkn", "not_known", "skipped", "error", "no_dkn"]
    assert [c.attributes["data-kind"] for c in cards(root)] == kinds
    statuses = ["known"] * 3 + ["not known", "skipped", "failed", "known"]
    assert [described(c)["Status"] for c in cards(root)] == statuses
    reasons = [described(c).get("Reason") for c in cards(root)]
    assert reasons == [None] * 3 + ["rank 12", "prompt is too long", "NaN in layer 3", None]
    assert "No candidate components" in cards(root)[6].text


def test_a_card_holds_what_was_found() -> None:
    (card,) = cards(run_page([known("a")]))
    about = described(card)
    assert about["Prompt"] == "The capital of a is"
    assert about["Answer"] == "Rome"
    assert about["Probability of the answer"] == "0.500"
    assert about["Rank of its first token"] == "1"
    assert about["Knowledge neurons"].startswith("13 in layers 0 to ")
    components, subsets, sizes, controls = (grid(t) for t in card.all("div", kind="table"))
    assert components[0][2:5] == ["birth", "death", "persistence"]
    assert [row[:6] for row in components[1:]] == [
        ["C1*", "3", "0.100", "1.00", "0.900", "0.400"],
        ["C2", "3", "0.200", "2.00", "1.80", "0.400"],
        ["C3*", "3", "0.300", "3.00", "2.70", "0.400"],
    ]
    assert components[1][7].startswith("L0:")
    assert subsets[1:] == [
        ["nothing", "0.500", "0.00"],
        ["C1", "0.400", "0.200"],
        ["C3", "0.400", "0.200"],
        ["C1 + C3", "0.320", "0.360"],
    ]
    assert [row[:2] for row in sizes[1:]] == [["0", "1"], ["1", "3"], ["2", "3"], ["3", "1"]]
    assert sizes[4][2:] == ["0.488"] * 3
    assert controls[1:] == [
        ["The DKN on this prompt", "1", "0.200", "0.360", "1.25", "0.150"],
        ["All candidates on this prompt", "1", "0.300", "0.488", "1.00", "0.000"],
        ["random neurons", "20", "0.010 ± 0.010", "0.020 ± 0.020", "1.00 (of 18)", "0.010"],
        ["held-out paraphrases", "3", "0.100 ± 0.050", "0.200 ± 0.060", "1.10", "0.020"],
    ]


# As gold -> Au on the demo model: neither component carries the fact without the other neurons.
TWO: dict[str, Any] = {
    "q": 2,
    "dkn": (0, 1),
    "probability": 0.96,
    "subset_probabilities": 0.96 * np.array([1, 0.91, 0.85, 0.45]),
    "full_drop": 0.55,
    "redundancy": 3.142,
    "rest_suppressed": np.array([0.00183, 0.000612, 0.000917]),
}


def family_of(**fields: Any) -> str:
    (card,) = cards(run_page([known("a", **(TWO | fields))]))
    start = card.text.index("The DKN is")
    return card.text[start : card.text.index("Candidates, the most", start)]


def test_a_card_says_of_a_dkn_what_was_measured_and_no_more() -> None:
    text = family_of()
    assert (
        "With all but one of its components suppressed the model keeps of the answer's probability "
        "85% if C1 is left, 91% if C2 is left; with all suppressed 45% (random neurons, as many in "
        "the same layers: 98%)." in text
    )
    assert "They cover for one another: redundancy 3.14, above 1." in text
    assert (
        "They do not carry the fact alone: with all other knowledge neurons suppressed as well, "
        "p = 0.00183 with C1 alone, p = 0.000612 with C2 alone, and p = 0.000917 with none." in text
    )
    for claim in ("expresses", "is lost", "lose it"):
        assert claim not in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rest_suppressed": np.array([0.9, 0.8, 0.1])}, "Each carries most of it alone, too"),
        ({"rest_suppressed": np.array([0.9, 0.1, 0.1])}, "Not every one of them carries most"),
        ({"redundancy": 1.004}, "They do not cover for one another: redundancy 1.00"),
        ({"redundancy": float("nan")}, "Their redundancy is not defined"),
        ({"controls": {}}, "with all suppressed 45%."),
        (
            {"controls": {"paraphrases": Drops(0.2, 0.61, n=3, single_drop=0.12)}},
            "It holds on held-out paraphrases (n = 3): there one component suppressed costs 12% on "
            "average, all cost 61%",
        ),
        (
            {"controls": {"paraphrases": Drops(0.2, 0.61, n=3, single_drop=0.42)}},
            "It does not hold on held-out paraphrases",
        ),
        (
            {"null": "regrouped", "null_draws": 19, "null_passing": 4, "null_p": 0.15},
            "By chance (the fact's own neurons regrouped, 19 draws) 4 draws have a DKN; p = 0.15",
        ),
        (
            {"subset_masks": np.array([0, 3]), "subset_probabilities": np.array([0.96, 0.43])},
            "With all of them suppressed the model keeps 45%",
        ),
    ],
)
def test_what_a_card_says_of_a_dkn_follows_its_figures(fields: dict[str, Any], said: str) -> None:
    assert said in family_of(**fields)


def test_a_card_has_the_objective_where_there_is_one() -> None:
    """Of the DKN of C1 and C3: nothing, each alone, both."""
    (plain,) = cards(run_page([known("a")]))
    assert "objective" not in plain.text
    one = known("a", subset_objective=np.arange(8.0) ** 2)
    control = dataclasses.replace(one.controls["random"], objective=(7.0, 6.5, 6.25, 6.0))
    one = dataclasses.replace(one, controls={**one.controls, "random": control})
    (card,) = cards(run_page([one]))
    said = (
        "The objective of attribution is 0.00, with one component suppressed 8.50 on average, with "
        "all 25.0."
    )
    assert said in card.text
    _, subsets, _, controls = (grid(t) for t in card.all("div", kind="table"))
    assert [row[-1] for row in subsets] == ["objective", "0.00", "1.00", "16.0", "25.0"]
    assert [row[-3:] for row in controls] == [
        ["objective", "one suppressed", "all suppressed"],
        ["0.00", "8.50", "25.0"],
        ["–", "–", "–"],
        ["7.00", "6.38", "6.00"],
        ["–", "–", "–"],
    ]
    (card,) = cards(run_page([dataclasses.replace(one, dkn=())]))
    assert "is 0.00, with one component suppressed 7.00 on average, with all 49.0." in card.text


def test_a_card_says_what_its_controls_leave_out() -> None:
    fact = known("a", q=6, dkn=(), n_paraphrases_not_known=2, n_reference=8, n_reference_packaged=5)
    (card,) = cards(run_page([fact]))
    for said in (
        "paraphrases that the model does not answer are left out: 2.",
        "With 6 components the controls are measured on up to 32 subsets",
        "5 of the 8 facts that unrelated facts and mean activations come from are packaged English",
        "none of the fact's own knowledge neurons",
    ):
        assert said in card.text
    (plain,) = cards(run_page([known("a")]))
    for said in ("left out", "32 subsets", "packaged"):
        assert said not in plain.text


def test_a_run_says_what_it_leaves_out_and_where_its_controls_come_from() -> None:
    none = float("nan")
    facts = [
        known("a", n_paraphrases_not_known=2, n_reference=8, n_reference_packaged=5),
        known("b", redundancy=none, n_paraphrases_not_known=1, n_reference=8),
        known("c", q=7, dkn=(), redundancy=none, controls={}),
    ]
    section = run_page(facts).all("section", id="drops-and-controls")[0].text
    for said in (
        "A mean of fewer than 6 facts has no interval.",
        "costs nothing: 1 of 2 (DKN families); 1 of 1 (Candidates, no DKN).",
        "1 fact has a family of more than 5 components: its controls are measured on up to 32",
        "Of 9 held-out paraphrases the model does not answer 3; they are left out.",
        "come from 8 facts, of which 5 are packaged English ones",
    ):
        assert said in section
    (tile,) = [
        t
        for t in run_page(facts).all("section", id="at-a-glance")[0].all("div")
        if "Full drop, DKN" in t.text
    ]
    assert "too few facts for an interval, n = 2" in tile.text


def test_users_text_is_only_text() -> None:
    results = [
        known("a", prompt=HOSTILE, answer=HOSTILE, relation=HOSTILE),
        known(HOSTILE, seed=1),
        FactResult("c", "error", HOSTILE),
    ]
    problems = [{"file": HOSTILE, "line": 3, "id": HOSTILE, "reason": HOSTILE}]
    html = render_run(results, summarize(results), manifest=MANIFEST, problems=problems)
    root = read(html)
    html.encode()
    shown = "<script>alert('x')</script> & \"quotes\" ?[31m? $x$"
    assert described(cards(root)[0])["Prompt"] == shown
    assert described(cards(root)[1])["Fact"] == shown
    assert described(cards(root)[2])["Reason"] == shown
    (script,) = root.all("script")
    assert "alert" not in script.text
    assert "tiny <model>" in root.all("header")[0].text
    assert '"note": "</pre><script>"' in root.all("pre")[0].text


def test_the_page_forbids_everything_but_its_own_script() -> None:
    root = run_page(several())
    (policy,) = [
        e.attributes["content"] or ""
        for e in root.all("meta")
        if e.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    (script,) = root.all("script")
    digest = hashlib.sha256(script.pieces[0].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    (style,) = root.all("style")
    assert not re.search(r"@import|url\(|@font-face|https?:", style.text + script.text)


def test_filter_waits_for_the_script_and_names_the_kinds_that_are_there() -> None:
    root = run_page(several())
    (bar,) = root.all("div", kind="filter")
    assert "hidden" in bar.attributes
    assert [o.attributes["value"] for o in bar.all("option")] == [
        *["", "dkn", "no_dkn", "not_known", "skipped", "error"]
    ]
    assert not run_page([known("a")]).all("div", kind="filter")
    for card in cards(root):
        assert "hidden" not in card.attributes
        assert "open" not in card.attributes


@pytest.mark.usefixtures("_without_png")
def test_large_runs_show_the_first_cards_and_count_the_rest(tmp_path: Path) -> None:
    n = 1000
    one = known("x", q=12, dkn=(0, 1), controls={})

    def stream() -> Any:
        for i in range(n):
            yield dataclasses.replace(
                one, fact_id=f"f{i}", subset_probabilities=one.subset_probabilities.copy()
            )

    summary = summarize(stream())
    tracemalloc.start()
    page, _ = write_page(tmp_path, stream(), summary, cards=5, fact_figures=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    root = read(page.read_text(encoding="utf-8"))
    assert len(cards(root)) == 5
    facts = root.all("section", id="facts")[0].text
    assert "The first 5 of 1,000 facts have a card." in facts
    assert "995 more facts have no card here. They are in facts-*.parquet" in facts
    assert page.stat().st_size < 400_000
    # The subset probabilities alone, 32 kB a fact, would be 33 MB.
    assert peak < 20e6, peak


def test_no_difference_and_too_few_facts_are_said() -> None:
    rng = np.random.default_rng(0)
    alike = []
    for i in range(12):
        drop = float(rng.uniform(0.2, 0.4))
        fact = known(str(i), seed=i)
        controls = {
            name: dataclasses.replace(fact.controls["random"], full_drop=drop + shift)
            for name, shift in (("random", (-1) ** i * 0.05), ("unrelated", -0.2 - 0.001 * i))
        }
        alike.append(dataclasses.replace(fact, full_drop=drop, controls=controls))
    page = run_page(alike)
    glance = page.all("section", id="at-a-glance")[0].text
    assert re.search("Suppressing a whole DKN .* no difference found\\.", glance)
    compared = grid(page.all("section", id="drops-and-controls")[0].all("div", kind="table")[1])
    assert [row[-1] for row in compared[1:]] == ["no difference found", "higher"]
    assert "Whether facts live in single neurons is disputed" in glance
    few = run_page(alike[:5])
    assert "probability, too few to say." in few.all("section", id="at-a-glance")[0].text
    verdicts = [
        row[-1]
        for row in grid(few.all("section", id="drops-and-controls")[0].all("div", kind="table")[1])
    ]
    assert verdicts == ["verdict", "too few to say", "too few to say"]


def test_runs_without_a_dkn_or_a_known_fact_or_any_fact() -> None:
    none = run_page([known("a", dkn=(), controls={})])
    assert "No fact has a DKN" in none.text
    assert "No controls were measured" in none.text
    unknown = run_page([FactResult("a", "not_known", "rank 9")])
    assert "The model knows none of these facts" in unknown.text
    assert "No facts." in run_page([]).text


def test_a_run_that_is_not_complete_says_so() -> None:
    assert "of the run are there so far" not in run_page(several()).text
    results = several()
    html = render_run(results, summarize(results), manifest=MANIFEST | {"facts": {"n": 1234}})
    assert "7 of the 1,234 facts of the run are there so far." in read(html).text


def test_the_versions_of_a_continued_run_are_all_named() -> None:
    first = {"dkn_engine": "0.1.0", "code": "aa", "torch": "2"}
    later = [{"versions": first | change} for change in ({"code": "bb"}, {"torch": "3"})]
    text = versions_text({"versions": first, "continued": later})
    assert text == (
        "dkn_engine 0.1.0, code aa, torch 2; continued with code bb; "
        "continued with code aa, torch 3"
    )
    manifest = MANIFEST | {"versions": first, "continued": later}
    results = several()
    assert text in render_run(results, summarize(results), manifest=manifest)
    assert text in render_markdown(results, summarize(results), manifest=manifest).replace("\\", "")


@pytest.mark.usefixtures("_without_png")
def test_a_fact_whose_probability_is_nothing_has_a_card_without_subsets(tmp_path: Path) -> None:
    fact = known("a", subset_probabilities=np.zeros(8))
    page, _ = write_page(tmp_path, [fact], summarize([fact]))
    (card,) = cards(read(page.read_text(encoding="utf-8")))
    assert [h.text for h in card.all("h3")] == ["Components", "Controls"]
    assert len(card.all("img")) == 2


def test_relations_left_out_facts_and_provenance() -> None:
    problems = [{"file": "facts.jsonl", "line": 1234, "id": None, "reason": "no answer"}]
    root = run_page(several(), problems=problems)
    (relations,) = root.all("section", id="relations")[0].all("div", kind="table")
    assert {row[0] for row in grid(relations)[1:]} == {"capital", "country", "(none)"}
    (left_out,) = root.all("section", id="left-out-by-the-loader")[0].all("div", kind="table")
    assert grid(left_out)[1] == ["–", "facts.jsonl", "1234", "no answer"]
    (made,) = root.all("section", id="how-this-run-was-made")[0].all("div", kind="table")
    rows = dict(grid(made)[1:])
    assert rows["Seed"] == "7"
    assert rows["Configuration"] == "123, in full in manifest.json"
    assert rows["Versions"] == "torch 2.13"


def test_page_with_figures_has_them_in_the_folder_and_inside(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    results = several()
    page, drawn = write_page(tmp_path, results, summarize(results), fact_figures=2)
    assert drawn
    written = page.read_bytes()
    root = read(written.decode())
    names = {"drops", "neurons", "overlap"}
    kinds = ("graph", "lattice", "barcode", "subsets")
    names |= {f"fact-0000{i}-{kind}" for i in (1, 3) for kind in kinds}
    there = {p.name for p in (tmp_path / "figures").iterdir()}
    assert there == {f"{name}.{end}" for name in names for end in ("svg", "png")}
    assert len(root.all("img")) == len(names)
    assert [len(c.all("img")) for c in cards(root)] == [4, 0, 4, 0, 0, 0, 0]
    (first, *_) = cards(root)[0].all("img")
    graph = tmp_path / "figures" / "fact-00001-graph.svg"
    assert drawing(first) == graph.read_text(encoding="utf-8")
    drawn_files = {p.read_text(encoding="utf-8") for p in (tmp_path / "figures").glob("*.svg")}
    for svg in root.all("img"):
        assert re.fullmatch(r"width:\d+\.\drem", svg.attributes["style"] or "")
        assert drawing(svg) in drawn_files
    assert "has no figures" not in root.text
    request.getfixturevalue("_without_png")
    again, _ = write_page(tmp_path, iter(results), summarize(results), fact_figures=2)
    assert again.read_bytes() == written


def as_large_as(i: int, row: dict[str, str]) -> FactResult:
    """A fact with as many neurons, components and controls as one that was measured."""
    rng = np.random.default_rng(i)
    n, q, width = int(row["neurons"]), int(row["components"]), 1536
    codes = np.sort(rng.choice(np.arange(12 * width, 30 * width), n, replace=False))
    neurons = np.stack([codes // width, codes % width], axis=1).astype(np.int32)
    members = np.array_split(rng.permutation(n)[: min(n, 4 * q)], q)
    return known(
        row["fact"],
        q=q,
        dkn=(0, 1) if row["dkn_sizes"] else (),
        neurons=neurons,
        scores=np.sort(rng.random(n, dtype=np.float32))[::-1].copy(),
        components=tuple(Component(neurons[np.sort(m)], 0.1, 1.0, 0.9, 0.4, 0.2) for m in members),
        connection_weights=rng.normal(size=len(adjacent_pairs(neurons))).astype(np.float32),
        convergence_delta=np.full(30, 1e-5, np.float32),
        n_points=np.full(30, 4, np.int32),
    )


@pytest.mark.usefixtures("_without_png")
def test_the_page_of_the_demo_is_small(tmp_path: Path) -> None:
    """As ``find`` writes it, of facts that are as large as those of the demo."""
    with DEMO_FACTS.open(encoding="utf-8", newline="") as file:
        results = [as_large_as(*numbered) for numbered in enumerate(csv.DictReader(file))]
    assert len(results) == 33
    page, _ = write_page(tmp_path, results, summarize(results))
    assert 1_000_000 < page.stat().st_size < 1_500_000


@pytest.mark.usefixtures("_without_png")
def test_a_card_shows_the_interactions_that_the_run_measured(tmp_path: Path) -> None:
    one = known("a")
    n = len(one.neurons)
    matrix = np.zeros((n, n))
    matrix[:3, :3], matrix[:3, 6:9], matrix[6:9, :3] = 0.5, 2, 2  # within C1, between C1 and C3
    measured = dataclasses.replace(
        one, pair_interactions=matrix[np.triu_indices(n, 1)].astype(np.float32)
    )
    page, _ = write_page(tmp_path, [measured], summarize([measured]))
    images = cards(read(page.read_text(encoding="utf-8")))[0].all("img")
    assert drawing(images[2]) == (tmp_path / "figures" / "fact-00001-interactions.svg").read_text()
    assert images[2].attributes["alt"] == (
        "Matrix of the interactions of 13 neurons in the order of their components; means in nats: "
        "within C1 0.5, within C2 0, within C3 0, between components 0.67."
    )


@pytest.mark.usefixtures("_without_png")
def test_components_that_no_filtration_made_have_no_life(tmp_path: Path) -> None:
    one = known("a")
    components = tuple(component(c.neurons) for c in one.components)
    searched = dataclasses.replace(one, components=components)
    page, _ = write_page(tmp_path, [one, searched], summarize([one, searched]), fact_figures=2)
    with_life, without = cards(read(page.read_text(encoding="utf-8")))
    assert ("persistence" in with_life.text, "persistence" in without.text) == (True, False)
    assert "most persistent first" not in without.text
    assert (tmp_path / "figures" / "fact-00001-barcode.svg").exists()
    assert not (tmp_path / "figures" / "fact-00002-barcode.svg").exists()


def test_page_without_matplotlib_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "available", lambda: False)
    results = several()
    page, drawn = write_page(tmp_path, results, summarize(results))
    root = read(page.read_text(encoding="utf-8"))
    assert not drawn
    assert not root.all("img")
    assert "pip install matplotlib" in root.all("section", id="at-a-glance")[0].text
    assert len(cards(root)) == 7
    assert not (tmp_path / "figures").exists()


def test_page_of_any_sections() -> None:
    figure = Figure(to_svg(some_bars()), "bars", "a caption")
    sections = [
        Section(
            "Same & title", [Paragraph("A <paragraph>."), Tiles([Tile("share", "50%", "n = 3")])]
        ),
        Section("Same & title", [Figures([figure] * 2), Points(["one <i>", "two"])]),
        Section("Third", [Table(["a"], [["x"]]), Fold("more", [Paragraph("in")], "a\n</pre>")]),
    ]
    html = render_page(Report("A <title>", "sub", sections))
    root = read(html)
    assert html == render_page(Report("A <title>", "sub", sections))
    assert root.all("h1")[0].text == "A <title>"
    assert [s.attributes["id"] for s in root.all("section")] == [
        *["same-title", "same-title-2", "third"]
    ]
    links = [a.attributes["href"] for a in root.all("nav")[0].all("a")]
    assert links == ["#same-title", "#same-title-2", "#third"]
    assert [drawing(image) for image in root.all("img")] == [figure.svg] * 2
    assert [item.text for item in root.all("main")[0].all("li")] == ["one <i>", "two"]
    (fold,) = root.all("details")
    assert fold.all("pre")[0].pieces == ["a\n</pre>"]
    assert not read(render_page(Report("t", "s", sections[:2]))).all("nav")
    with pytest.raises(ValueError, match="svg must be an SVG document with a width; got 'no'"):
        render_page(Report("t", "s", [Section("x", [Figures([Figure("no", "x")])])]))


def test_table_aligns_numbers_marks_controls_and_scrolls_in_its_box() -> None:
    table = Table(
        ["group", number("drop"), number("n"), "note", number("p")],
        [
            ["D <b>", 0.5, 1234, "text", float("nan")],
            ["Rnd", -0.012345, 5, Link("a <run>", "run/a b.html"), 0.04],
            ["none", 1234.5, None, "w" * 50, float("inf")],
        ],
        "What it <shows>",
        controls={1, 2},
    )
    root = Page(render_page(Report("t", "s", [Section("x", [table])]))).root
    (box,) = root.all("div", kind="table")
    assert box.all("p", kind="caption")[0].text == "What it <shows>"
    assert grid(box)[1:] == [
        ["D <b>", "0.500", "1,234", "text", "–"],
        ["Rnd", "-0.0123", "5", "a <run>", "0.0400"],
        ["none", "1,234", "", "w" * 50, "–"],
    ]
    assert box.all("a")[0].attributes["href"] == "run/a b.html"
    assert [th.attributes.get("class") for th in box.all("thead")[0].all("th")] == [
        *[None, "number", "number", None, "number"]
    ]
    assert [r.attributes.get("class") for r in box.all("tbody")[0].all("tr")] == [
        *[None, "control", "control"]
    ]
    assert [th.attributes["scope"] for th in box.all("tbody")[0].all("th")] == ["row"] * 3
    assert box.all("td", kind="wide")[0].text == "w" * 50
    (scroll,) = box.all("div", kind="scroll")
    assert (scroll.attributes["tabindex"], scroll.attributes["role"]) == ("0", "group")
    assert len(scroll.all("table")) == 1
    with pytest.raises(ValueError, match="row 0 must have 2 cells, as the columns; got 1"):
        Table(["a", "b"], [["x"]])


def test_no_figures_are_drawn_where_none_are_asked_for(tmp_path: Path) -> None:
    results = several()
    page, drawn = write_page(tmp_path, results, summarize(results), figures=False)
    root = read(page.read_text(encoding="utf-8"))
    assert not drawn
    assert not root.all("img")
    assert "matplotlib" not in root.text
    assert not (tmp_path / "figures").exists()


def test_style_sheet_serves_phones_paper_and_the_dark() -> None:
    css = (resources.files("dkn_engine.report.html") / "page.css").read_text(encoding="utf-8")
    phone = css.partition("@media (max-width: 40rem)")[2]
    assert phone
    for condition in ("(prefers-color-scheme: dark)", "print", "(prefers-reduced-motion: reduce)"):
        assert f"@media {condition}" in css
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", css)
    assert re.search(r"figure img \{[^}]*max-width: 100%", css)
    assert re.search(r"figure img \{ max-width: none", phone)  # letters stay as large as they are
    assert re.search(r"tbody th \{ position: sticky", phone)
    assert "details::details-content" in css.partition("@media print")[2]
    script = (resources.files("dkn_engine.report.html") / "page.js").read_text(encoding="utf-8")
    assert "beforeprint" in script
    root = run_page(several())
    viewport = [e for e in root.all("meta") if e.attributes.get("name") == "viewport"]
    assert viewport[0].attributes["content"] == "width=device-width, initial-scale=1"
    for table in root.all("table"):
        assert table.parent is not None
        assert table.parent.attributes["class"] == "scroll"


@pytest.mark.parametrize("theme", [0, 1])
def test_text_has_contrast(theme: int) -> None:
    """WCAG's ratio of 4.5 for text on both backgrounds, in light and in dark."""
    css = (resources.files("dkn_engine.report.html") / "page.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colors = dict(re.findall(r"--([\w-]+): (#\w{6});", block))

    def light(name: str) -> float:
        channels = [int(colors[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(t, b) for t in ("ink", "soft", "accent") for b in ("paper", "panel")]
    for text, background in [*pairs, ("on-accent", "accent")]:
        high, low = sorted((light(text), light(background)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, background)
