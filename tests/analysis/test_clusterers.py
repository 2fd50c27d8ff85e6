"""The comparison of clusterers: planted neurons end to end, tables from figures set by hand."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len as width

import dkn_engine as dkn
from dkn_engine.analysis import (
    ClustererComparison,
    Measurement,
    compare_clusterers,
    compare_measurements,
)
from dkn_engine.analysis.experiments.clusterers import text as clusterers_text
from dkn_engine.analysis.experiments.clusterers.experiment import METHODS
from dkn_engine.cli import main as cli
from dkn_engine.config import Config, FactsConfig, FilterConfig, SelectionConfig, TopologyConfig
from dkn_engine.degeneracy.edits import nothing, suppress
from dkn_engine.facts import load_facts
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models import load
from tests.support.brute_force_edits import answer_probability
from tests.support.planted import BOTH, EITHER, Planted, planted_model
from tests.support.words import words_tokenizer

# As in tests/degeneracy/test_planted.py: the leaves of the merge tree are the planted sets.
CONFIG = Config(
    selection=SelectionConfig(threshold=0.4),
    topology=TopologyConfig(end="largest_merge", end_value=None, allow_root=False, select="leaf"),
    filter=FilterConfig(min_alone=0.5, max_none=0.5),
)
# Probabilities agree to 1e-5 whatever the batch (tests/degeneracy/test_planted.py), so drops do.
DROP = 1e-5
UNKNOWN = dataclasses.replace(BOTH.fact, id="unknown", answer=EITHER.fact.answer)
FACTS = [EITHER.fact, UNKNOWN, BOTH.fact]


@pytest.fixture(scope="module")
def model() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def comparison(model: Any) -> ClustererComparison:
    return compare_clusterers(model, words_tokenizer(), FACTS, CONFIG, n_draws=4)


def of(comparison: ClustererComparison, method: str, fact: dkn.Fact) -> Measurement:
    (found,) = (m for m in comparison.measurements if (m.method, m.fact_id) == (method, fact.id))
    return found


def test_every_clusterer_sees_every_known_fact(comparison: ClustererComparison) -> None:
    assert (comparison.n_facts, comparison.n_known, comparison.n_unusable) == (3, 2, 0)
    assert [m.method for m in comparison.methods] == list(METHODS)
    assert [m.control for m in comparison.methods] == [n == "random" for n in METHODS]
    asked = [(m.fact_id, m.method) for m in comparison.measurements]
    assert asked == [(f.id, n) for f in (EITHER.fact, BOTH.fact) for n in METHODS]


def test_ntc_is_what_the_pipeline_finds(model: Any, comparison: ClustererComparison) -> None:
    results = dkn.find_dkns(model, words_tokenizer(), [EITHER.fact, BOTH.fact], CONFIG)
    for result, fact in zip(results, (EITHER.fact, BOTH.fact), strict=True):
        found = of(comparison, "ntc", fact)
        assert found.n_components == len(result.components) == len(CONFIG_SETS[fact.id])
        assert found.n_neurons == sum(len(c.neurons) for c in result.components)
        assert found.degenerate == result.is_degenerate == (fact is EITHER.fact)
        assert result.candidates is not None
        assert found.partial_drop == pytest.approx(result.candidates.partial_drop, abs=DROP)
        assert found.full_drop == pytest.approx(result.candidates.full_drop, abs=DROP)
        if result.is_degenerate:
            assert found.dkn_size == len(result.dkn) == 3
            assert found.dkn_partial_drop == pytest.approx(result.partial_drop, abs=DROP)
            assert found.dkn_full_drop == pytest.approx(result.full_drop, abs=DROP)
        else:
            assert math.isnan(found.dkn_size)
            assert math.isnan(found.dkn_full_drop)


CONFIG_SETS = {EITHER.fact.id: EITHER.sets, BOTH.fact.id: BOTH.sets}


def test_redundancy_shows_in_random_sets_but_less_of_it(comparison: ClustererComparison) -> None:
    """With one set in three enough, other groupings can be degenerate as well; none is as good."""
    for fact in (EITHER.fact, BOTH.fact):
        ntc, random = of(comparison, "ntc", fact), of(comparison, "random", fact)
        assert random.n_components == ntc.n_components
        assert random.n_neurons == ntc.n_neurons
        # All neurons are in both, so all suppressed is the same.
        assert random.full_drop == pytest.approx(ntc.full_drop, abs=DROP)
    ntc, random = of(comparison, "ntc", EITHER.fact), of(comparison, "random", EITHER.fact)
    assert ntc.partial_drop < 0.05 < random.partial_drop
    assert random.dkn_size < ntc.dkn_size
    assert of(comparison, "hdbscan", EITHER.fact).dkn_size == ntc.dkn_size
    assert of(comparison, "random", BOTH.fact).degenerate == 0


@pytest.mark.parametrize("planted", [EITHER, BOTH], ids=["either", "both"])
def test_pairs_are_those_of_brute_force(model: Any, planted: Planted) -> None:
    (result,) = dkn.find_dkns(model, words_tokenizer(), [planted.fact], CONFIG)
    fact = planted.fact
    one = encode_sequence(model, words_tokenizer(), fact.prompt, fact.answer, config=FactsConfig())

    def p(*neurons: Any) -> float:
        return answer_probability("llama", model, one, suppress(np.array(neurons)))

    clean = answer_probability("llama", model, one, nothing())
    found = set()
    for a, b in itertools.combinations([tuple(n) for n in result.neurons.tolist()], 2):
        least = min(p(a), p(b))
        if least >= 0.5 * clean and p(a, b) <= 0.5 * least:
            found |= {a, b}
    # By the definition of the filter itself, over all pairs of all located neurons.
    several = dataclasses.replace(
        CONFIG, topology=dataclasses.replace(CONFIG.topology, max_candidates=12)
    )
    comparison = compare_clusterers(model, words_tokenizer(), [fact], several, methods=["pairs"])
    measured = of(comparison, "pairs", fact)
    assert measured.n_components == measured.n_neurons == len(found)
    assert measured.degenerate == bool(found)
    # What three sets cover is too large for any pair; of BOTH a pair may be spared one by one.
    assert bool(found) == (planted is BOTH)


def test_facts_are_attributed_once_for_all(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dkn_engine.run import stages

    seen = []
    before = stages.attribute_chunk  # type: ignore[attr-defined]

    def counted(model: Any, layout: Any, sequences: Any, *args: Any, **options: Any) -> Any:
        seen.extend(sequences)
        return before(model, layout, sequences, *args, **options)

    monkeypatch.setattr(stages, "attribute_chunk", counted)
    compare_clusterers(model, words_tokenizer(), FACTS, CONFIG, methods=["dbscan"])
    assert len(seen) == 2


def test_progress_is_shown(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compare_clusterers(model, words_tokenizer(), FACTS, CONFIG, methods=["dbscan"], progress=True)
    assert f"{len(FACTS)}/{len(FACTS)} fact" in capsys.readouterr().err


def test_a_directory_continues(model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dkn_engine.run import stages

    once = compare_clusterers(
        model, words_tokenizer(), FACTS, CONFIG, methods=["dbscan"], out=tmp_path
    )
    monkeypatch.setattr(stages, "attribute_chunk", None)
    again = compare_clusterers(
        model, words_tokenizer(), FACTS, CONFIG, methods=["dbscan"], out=tmp_path
    )
    # As text, since NaN is not equal to itself.
    assert repr(again) == repr(once)
    assert [m.method for m in again.methods] == ["ntc", "dbscan"]


def test_means_instead_of_zeros(model: Any, comparison: ClustererComparison) -> None:
    config = dataclasses.replace(
        CONFIG, filter=dataclasses.replace(CONFIG.filter, suppress_value="mean")
    )
    facts = [EITHER.fact, BOTH.fact]
    found = compare_clusterers(model, words_tokenizer(), facts, config, methods=["ntc"])
    (result, _) = dkn.find_dkns(model, words_tokenizer(), facts, config)
    assert result.candidates is not None
    measured = of(found, "ntc", EITHER.fact)
    assert measured.full_drop == pytest.approx(result.candidates.full_drop, abs=DROP)
    assert measured.full_drop != of(comparison, "ntc", EITHER.fact).full_drop


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"methods": ["spectral"]}, "methods must be among ntc, .*; got 'spectral'"),
        ({"n_draws": 0}, "n_draws must be an integer of at least 1; got 0"),
        (
            {"config": Config(filter=FilterConfig(method="released"))},
            "filter.method must be 'degenerate'.*got 'released'",
        ),
        (
            {"config": Config(topology=TopologyConfig(clustering="released"))},
            "topology.clustering must be 'ntc'.*got 'released'",
        ),
        (
            {"config": Config(topology=TopologyConfig(connections="residual"))},
            "topology.connections must be 'adjacent'.*got 'residual'",
        ),
        (
            {"config": Config(topology=TopologyConfig(select="tree"))},
            "topology.select must be no 'tree'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(model: Any, options: Any, expected: str) -> None:
    with pytest.raises(dkn.UserError, match=expected):
        compare_clusterers(model, words_tokenizer(), FACTS, **options)


def test_facts_that_nobody_knows_leave_nothing_to_compare(model: Any) -> None:
    with pytest.raises(dkn.UserError, match="the model knows none of the 1 facts"):
        compare_clusterers(model, words_tokenizer(), [UNKNOWN], CONFIG)


def test_facts_that_cannot_be_used_are_counted_or_refused(model: Any) -> None:
    unusable = dataclasses.replace(BOTH.fact, id="empty", answer="")
    facts = [EITHER.fact, unusable]
    found = compare_clusterers(model, words_tokenizer(), facts, CONFIG, methods=["ntc"])
    assert (found.n_facts, found.n_known, found.n_unusable) == (2, 1, 1)
    assert "2 facts, of which the model knows 1, 1 cannot be used" in clusterers_text.render(found)
    with pytest.raises(dkn.UserError, match="'empty' cannot be used"):
        compare_clusterers(model, words_tokenizer(), facts, CONFIG, methods=["ntc"], strict=True)


def figures(fact: int, method: str, partial: float, full: float, hit: float = 1) -> Measurement:
    nan = math.nan
    return Measurement(
        fact_id=f"f{fact}",
        method=method,
        n_components=0 if math.isnan(full) else 3,
        n_neurons=7,
        degenerate=hit,
        partial_drop=partial,
        full_drop=full,
        redundancy=1.5,
        dkn_size=2 if hit else nan,
        dkn_partial_drop=partial if hit else nan,
        dkn_full_drop=full if hit else nan,
    )


def by_hand(n: int) -> ClustererComparison:
    """DBSCAN drops less on every fact, k-means as often more as less, pairs nowhere."""
    made = []
    for i in range(n):
        made += [
            figures(i, "ntc", 0.2, 0.5),
            figures(i, "dbscan", 0.1 - 0.001 * i, 0.5 if i else 0.5001, hit=0),
            figures(i, "kmeans", 0.2 + (0.05 if i % 2 else -0.05), 0.5),
            figures(i, "pairs", math.nan, math.nan, hit=0),
        ]
    return compare_measurements(made, n_facts=n + 3)


def test_differences_are_paired_and_told_from_their_interval() -> None:
    found = {(d.method, d.figure): d for d in by_hand(10).differences}
    partial = found["dbscan", "partial_drop"]
    assert partial.estimate.mean == pytest.approx(-0.1 - 0.0045)
    assert partial.estimate.n == 10
    assert partial.estimate.ci_high < -0.1
    assert partial.larger_than_interval
    assert found["dbscan", "gap"].larger_than_interval
    assert found["dbscan", "degenerate"].estimate.mean == -1
    assert not found["dbscan", "full_drop"].larger_than_interval
    assert not found["kmeans", "partial_drop"].larger_than_interval
    # Ten differences of nothing are no difference.
    assert not found["kmeans", "full_drop"].larger_than_interval
    assert found["kmeans", "full_drop"].enough


def test_without_ntc_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(ValueError, match=r"must hold those of 'ntc'; got \['dbscan'\]"):
        compare_measurements([figures(0, "dbscan", 0.1, 0.2)], n_facts=1)


@pytest.mark.parametrize(("n", "enough"), [(5, False), (6, True)])
def test_few_facts_say_nothing(n: int, enough: bool) -> None:
    found = {(d.method, d.figure): d for d in by_hand(n).differences}
    assert found["dbscan", "partial_drop"].enough is enough
    assert found["dbscan", "partial_drop"].larger_than_interval is enough
    assert not found["pairs", "partial_drop"].enough  # defined for no fact
    assert found["pairs", "degenerate"].enough is enough


def test_summaries_count_facts_and_average_over_those_with_components() -> None:
    found = {m.method: m for m in by_hand(10).methods}
    assert list(found) == ["ntc", "dbscan", "kmeans", "pairs"]
    assert (found["ntc"].n_facts, found["ntc"].n_with_two) == (10, 10)
    assert found["pairs"].n_with_two == 0
    assert found["ntc"].degenerate.mean == 1
    assert found["pairs"].degenerate.mean == 0
    assert found["pairs"].degenerate.ci_high == pytest.approx(0.278, abs=1e-3)  # Wilson, 0 of 10
    assert (found["pairs"].full_drop.n, found["ntc"].full_drop.n) == (0, 10)
    assert found["ntc"].gap.mean == pytest.approx(0.3)
    assert found["dbscan"].dkn_full_drop.n == 0


def test_words_say_which_differences_are_larger_than_their_interval() -> None:
    dbscan, kmeans, pairs, chance, circular = clusterers_text.sentences(by_hand(10))
    assert dbscan.startswith(
        "DBSCAN minus NTC: larger than its interval: share degenerate -1.00, partial drop -0.10"
    )
    assert "; not larger than its interval: full drop +0.00" in dbscan
    assert kmeans.startswith("k-means minus NTC: not larger than its interval: share degenerate")
    assert pairs == (
        "AMIG pairs minus NTC: larger than its interval: share degenerate -1.00; "
        "fewer than 6 facts to compare: partial drop, full drop, full minus partial drop."
    )
    assert "Of 12 of them about 0.6" in chance
    assert "by construction" in circular


@pytest.mark.parametrize("n", [1, 10])
def test_tables_fit_the_terminal(n: int, comparison: ClustererComparison) -> None:
    for text in map(clusterers_text.render, (by_hand(n), comparison)):
        assert max(map(width, text.splitlines())) <= 80
        assert "nan" not in text
        assert text.endswith("\n")
    assert f"{n + 3} facts, of which the model knows {n}" in clusterers_text.render(by_hand(n))
    # k-means: 0.15 and 0.25 in turn, so Student's interval of ten; NTC: 0.2 on all facts.
    lines = [" ".join(line.split()) for line in clusterers_text.render(by_hand(10)).splitlines()]
    assert "k-means 10 0.20 [0.16, 0.24] 0.50 10 0.20 0.50" in lines
    assert "NTC 10 0.20 0.50 10 0.20 0.50" in lines


def test_rows_have_a_figure_each() -> None:
    rows = list(clusterers_text.rows(by_hand(10)))
    assert {len(r) for r in rows} == {len(clusterers_text.ROW_COLUMNS)}
    assert len({r[:2] for r in rows}) == len(rows) == 4 * 10 + 3 * 4
    found = {r[:2]: r[2:] for r in rows}
    assert found["ntc", "full_drop"][:2] == (10, "0.5000")
    assert found["dbscan", "partial_drop_minus_ntc"][-1] is True
    assert found["pairs", "partial_drop_minus_ntc"][-1] == ""


def test_plain_data_is_json_without_nan(comparison: ClustererComparison) -> None:
    for one in (comparison, by_hand(2)):
        data = json.loads(json.dumps(clusterers_text.document(one), allow_nan=False))
        assert [m["method"] for m in data["methods"]] == [m.method for m in one.methods]
        assert data["sentences"]


class Program:
    """The program with the planted model and its facts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Any, tmp_path: Any) -> None:
        monkeypatch.setattr(load, "load_model", lambda *_, **_more: (model, words_tokenizer()))
        self.facts = tmp_path / "facts.jsonl"
        self.write(FACTS)

    def write(self, facts: Any) -> None:
        records = [{"id": f.id, "prompt": f.prompt, "answer": f.answer} for f in facts]
        self.facts.write_text("".join(json.dumps(r) + "\n" for r in records))
        assert [f.id for f in load_facts(self.facts)] == [f.id for f in facts]

    def run(self, *options: str) -> int:
        settings = ["selection.threshold=0.4", "filter.min_alone=0.5", "filter.max_none=0.5"]
        given = ["--model", "planted", "--facts", str(self.facts)]
        changes = [part for s in settings for part in ("--set", s)]
        return cli.main(["analyze", "clusterers", *given, *changes, *options])


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, model: Any, tmp_path: Any) -> Program:
    return Program(monkeypatch, model, tmp_path)


def test_the_program_prints_the_table(program: Program, capsys: Any, tmp_path: Any) -> None:
    out = tmp_path / "out"
    assert program.run("--out", str(out), "--draws", "2") == 0
    printed = capsys.readouterr()
    assert "3 facts, of which the model knows 2" in printed.out
    for label in ("NTC", "DBSCAN", "HDBSCAN", "hierarchical", "k-means", "AMIG pairs", "random"):
        assert f"\n{label}" in printed.out
    assert "[3/3] comparing clusterers on 3 facts" in printed.err
    with (out / "clusterers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows if r["figure"] == "degenerate"] == list(METHODS)
    with (out / "clusterers_facts.csv").open() as file:
        measured = list(csv.DictReader(file))
    assert len(measured) == 2 * len(METHODS)
    assert np.isclose(float(measured[0]["full_drop"]), 1, atol=0.01)
    assert len(dkn.read_results(out / "run")) == 3


def test_tables_that_cannot_be_written_stay_as_they_were(
    program: Program, tmp_path: Any, capsys: Any
) -> None:
    """A folder is in the way of the second, when the first one's contents are on the disk."""
    out = tmp_path / "out"
    asked = ("--out", str(out), "--method", "dbscan", "--method", "random", "--quiet")
    assert program.run(*asked, "--draws", "2") == 0
    before = {p.name: p.read_bytes() for p in out.glob("*.csv")}
    assert len(before) == 2
    (out / "clusterers_facts.csv.tmp").mkdir()
    assert program.run(*asked, "--draws", "3") == 2
    assert "clusterers_facts.csv.tmp: " in capsys.readouterr().err.splitlines()[-1]
    (out / "clusterers_facts.csv.tmp").rmdir()
    assert {p.name: p.read_bytes() for p in out.glob("*.csv*")} == before


def test_the_program_writes_json_for_machines(program: Program, capsys: Any) -> None:
    assert program.run("--json", "--quiet", "--method", "dbscan", "--method", "random") == 0
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert printed.err == ""
    assert data["analysis"] == "clusterers"
    assert [m["method"] for m in data["methods"]] == ["ntc", "dbscan", "random"]
    assert data["problems"] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method", "spectral"], "methods must be among ntc"),
        (["--preset", "released"], "topology.clustering must be 'ntc'"),
        (["--draws", "0"], "must be a positive integer; got '0'"),
        (["--limit", "x"], "must be a positive integer; got 'x'"),
        (["--set", "filter.tau=1"], "unknown key 'tau'"),
    ],
)
def test_mistakes_are_one_line(
    program: Program, capsys: Any, options: list[str], expected: str
) -> None:
    assert program.run(*options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("dkn-engine: error: ")
    assert expected in line


def test_a_file_is_no_folder(program: Program, capsys: Any) -> None:
    assert program.run("--out", str(program.facts)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out must be a folder" in line


def test_another_configuration_in_the_same_folder_is_refused(
    program: Program, capsys: Any, tmp_path: Any
) -> None:
    assert program.run("--out", str(tmp_path), "--method", "ntc", "--quiet") == 0
    capsys.readouterr()
    assert program.run("--out", str(tmp_path), "--set", "seed=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed" in line or "config" in line


def test_no_known_fact_is_one_line(program: Program, capsys: Any) -> None:
    program.write([UNKNOWN])
    assert program.run("--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the model knows none of the 1 facts" in line


def test_an_analysis_must_be_named(capsys: Any) -> None:
    assert cli.main(["analyze", "nothing"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "argument ANALYSIS: invalid choice: 'nothing'" in line
