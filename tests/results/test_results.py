"""Results as a sequence, as tables, as a notebook and a page show them."""

from __future__ import annotations

import copy
import dataclasses
import html.parser
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.report import summarize
from dkn_engine.types import Component
from tests.support.fact_results import known, several

RESULTS = dkn.Results(several())


def test_they_behave_as_a_list_of_them() -> None:
    plain = several()
    results = dkn.Results(plain)
    assert len(results) == 7
    assert list(results) == plain
    assert results[0] is plain[0]
    assert results[-1] is plain[-1]
    assert isinstance(results[1:3], dkn.Results)
    assert results[1:3] == plain[1:3] == results[1:3]
    assert results == plain
    assert results == tuple(plain)
    assert results != plain[:-1]
    assert results != several()  # Records are equal to themselves alone.
    assert results != "results"
    assert dkn.Results() == []
    assert not dkn.Results()
    assert results[:2] + results[2:] == plain
    assert plain[3] in results
    assert results.index(plain[3]) == 3
    assert [r.fact_id for r in reversed(results)] == list("gfedcba")
    with pytest.raises(IndexError):
        results[7]


def test_a_result_is_found_by_its_facts_id() -> None:
    assert RESULTS["c"] is RESULTS[2]
    with pytest.raises(KeyError, match="no fact has the id 'x'"):
        RESULTS["x"]


def test_they_cannot_be_changed_and_are_pickled_and_copied() -> None:
    with pytest.raises(TypeError):
        RESULTS[0] = RESULTS[1]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        RESULTS._results = ()  # type: ignore[misc]
    with pytest.raises(TypeError, match="unhashable"):
        hash(RESULTS)
    for other in (pickle.loads(pickle.dumps(RESULTS)), copy.deepcopy(RESULTS)):
        assert isinstance(other, dkn.Results)
        assert [r.fact_id for r in other] == [r.fact_id for r in RESULTS]
        assert other[0].scores.tobytes() == RESULTS[0].scores.tobytes()


def test_they_say_how_many_there_are() -> None:
    assert repr(RESULTS) == "<Results: 7 facts, 4 of them known, 2 with a DKN>"
    assert repr(RESULTS.summary()) == repr(summarize(RESULTS))  # NaN is its own text.


def test_the_table_of_facts_has_the_figures_of_each() -> None:
    table = RESULTS.to_pandas()
    assert list(table["fact_id"]) == list("abcdefg")
    row = table.iloc[2]
    result = RESULTS[2]
    for name in ("prompt", "status", "probability", "partial_drop", "redundancy", "excess", "dkn"):
        assert row[name] == getattr(result, name)
    assert (row["n_neurons"], row["n_components"], row["is_degenerate"]) == (19, 5, True)
    assert row["paraphrases_full_drop"] == result.controls["paraphrases"].full_drop
    assert math.isnan(row["unrelated_excess"])
    assert math.isnan(table.iloc[3]["random_full_drop"])


def test_the_table_of_neurons_says_which_component_each_is_in() -> None:
    table = RESULTS.to_pandas("neurons")
    assert len(table) == sum(len(r.neurons) for r in RESULTS)
    for result in RESULTS:
        rows = table[table["fact_id"] == result.fact_id]
        assert rows[["layer", "index"]].to_numpy().tolist() == result.neurons.tolist()
        np.testing.assert_array_equal(rows["score"].to_numpy(np.float32), result.scores)
        for i, component in enumerate(result.components):
            mine = rows[(rows["component"] == i).fillna(value=False)]
            assert mine[["layer", "index"]].to_numpy().tolist() == component.neurons.tolist()
            assert set(mine["in_dkn"]) == {i in result.dkn}
        n_in = sum(len(c.neurons) for c in result.components)
        assert rows["component"].isna().sum() == len(result.neurons) - n_in
        assert not rows[rows["component"].isna()]["in_dkn"].any()


def test_the_tables_of_components_and_subsets() -> None:
    components = RESULTS.to_pandas("components")
    assert len(components) == 3 + 2 + 5
    row = components.iloc[2]
    assert (row["fact_id"], row["component"], row["in_dkn"], row["n_neurons"]) == ("a", 2, True, 3)
    assert row["neurons"] == [tuple(n) for n in RESULTS[0].components[2].neurons.tolist()]
    assert row["persistence"] == RESULTS[0].components[2].persistence
    subsets = RESULTS.to_pandas("subsets")
    assert len(subsets) == 8 + 4 + 32 + 1
    row = subsets[(subsets["fact_id"] == "a") & (subsets["suppressed"] == (0, 2))].iloc[0]
    assert row["probability"] == RESULTS[0].subset_probabilities[0b101]
    assert row["drop"] == pytest.approx(0.36, abs=1e-12)
    assert subsets["objective"].isna().all()
    read = dataclasses.replace(RESULTS[0], subset_objective=np.arange(8.0) - 3)
    subsets = dkn.Results([read, *RESULTS[1:]]).to_pandas("subsets")
    assert subsets["objective"].tolist()[:8] == read.subset_objective.tolist()
    assert subsets["objective"].isna().sum() == 4 + 32 + 1


@pytest.mark.parametrize("table", ["facts", "neurons", "components", "subsets"])
def test_a_table_without_rows_has_its_columns(table: Any) -> None:
    empty = dkn.Results().to_pandas(table)
    assert len(empty) == 0
    assert list(empty.columns) == list(RESULTS.to_pandas(table).columns)


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(dkn.UserError, match=r"table must be one of facts, neurons, .*; got 'fact'"):
        RESULTS.to_pandas("fact")  # type: ignore[arg-type]


def test_without_pandas_it_is_said_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['pandas'] = None\nimport dkn_engine as dkn\n"
        "try:\n    dkn.Results().to_pandas()\nexcept dkn.UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "to_pandas needs the package pandas: pip install pandas" in done.stdout, done.stderr


def test_the_index_of_neurons_names_the_facts_that_share_them() -> None:
    def fact(name: str, neurons: list[list[int]]) -> dkn.FactResult:
        return dkn.FactResult(name, "ok", neurons=np.array(neurons, np.int32))

    some = dkn.Results([fact("a", [[3, 1], [0, 9]]), fact("b", [[3, 1]]), fact("c", [[0, 2]])])
    assert list(some.neurons().items()) == [
        ((3, 1), ("a", "b")),
        ((0, 2), ("c",)),
        ((0, 9), ("a",)),
    ]
    assert dkn.Results().neurons() == {}


class Elements(html.parser.HTMLParser):
    """What elements a piece of HTML has; that each is closed."""

    def __init__(self, piece: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(piece)
        assert not self.open

    def handle_starttag(self, tag: str, _: Any) -> None:
        self.names.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_notebook_shows_a_table_of_them() -> None:
    piece = RESULTS._repr_html_()
    assert "7 facts, 4 of them known, 2 with a DKN" in piece
    assert Elements(piece).names.count("tr") == 8
    many = dkn.Results(RESULTS[0] for _ in range(60))._repr_html_()
    assert Elements(many).names.count("tr") == 51
    assert "and 10 more facts." in many
    assert "No facts" in dkn.Results()._repr_html_()


def test_a_notebook_shows_the_summary() -> None:
    summary = RESULTS.summary()
    piece = summary._repr_html_()
    assert "Known facts with a DKN" in piece
    assert "DKN families minus random neurons" in piece
    assert "2 of 4" in piece
    assert Elements(piece).names.count("table") == 4  # headlines, drops, comparisons, relations
    assert Elements(piece).names.count("dl") == 0  # which needs the page's style


def test_a_notebook_shows_scores() -> None:
    scores = np.zeros((2, 3, 4), np.float32)
    scores[0, 2, 1], scores[1, 0, 3] = 0.5, 0.25
    nothing = np.zeros((2, 3), np.float32)
    found = dkn.Attribution(
        *(("<a>", "b"), scores, nothing, np.array([0.5, 0.25]), nothing.astype(np.int32)),
        *(nothing == 0, np.zeros(2, np.float32), ("sweep", "sweep")),
    )
    piece = found._repr_html_()
    assert "Scores of 3 layers of 4 neurons, 2 facts" in piece
    assert "&lt;a&gt;" in piece
    assert "L2:1, L0:0" in piece
    assert "L0:3, L0:0" in piece
    assert Elements(piece).names.count("tr") == 3


def test_a_notebook_shows_a_fact_with_its_pictures() -> None:
    piece = RESULTS[0]._repr_html_()
    assert Elements(piece).names.count("img") == 2
    assert "The DKN is C1, C3" in piece
    assert "The capital of a is → Rome" in piece
    assert Elements(RESULTS[3]._repr_html_()).names == ["h3", "p"]
    assert "not known: rank 12" in RESULTS[3]._repr_html_()
    assert Elements(RESULTS[6]._repr_html_()).names.count("img") == 1
    no_neurons = dkn.FactResult("x", "ok", prompt="<b>", answer="$x$")
    assert "&lt;b&gt; → $x$" in no_neurons._repr_html_()


def test_the_report_is_one_file(tmp_path: Path) -> None:
    found = RESULTS[:2].report(tmp_path / "new" / "page.html")
    assert found == tmp_path / "new" / "page.html"
    assert [p.name for p in found.parent.iterdir()] == ["page.html"]
    page = found.read_text(encoding="utf-8")
    assert page.count('class="card"') == 2
    assert page.count("<img") > 4


def test_records_stay_plain() -> None:
    """A result with behaviour is still its fields: no state beside them, and it is pickled."""
    one = known("a")
    other = pickle.loads(pickle.dumps(one))
    assert set(vars(one)) == {f.name for f in dataclasses.fields(dkn.FactResult)}
    assert other.connection_weights.tobytes() == one.connection_weights.tobytes()
    assert isinstance(other.components[0], Component)
