"""Two runs of the same facts beside one another."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest

import dkn_engine as dkn
from tests.support.fact_results import known


def runs() -> tuple[dkn.Results, dkn.Results]:
    """Facts with a DKN in both, the first, the second, in none; not known; in one run alone."""
    lost = dkn.FactResult("lost", "not_known")
    a = [known(i, dkn=d) for i, d in (("b", (0, 2)), ("f", (0, 1)), ("s", ()), ("n", ()))]
    b = [known(i, dkn=d) for i, d in (("s", (0, 1)), ("n", ()), ("b", (1, 2)), ("f", ()))]
    return dkn.Results([*a, known("lost"), known("x")]), dkn.Results([known("y"), lost, *b])


def test_facts_are_matched_by_id_and_sorted_by_where_they_have_a_dkn() -> None:
    found = dkn.compare(*runs())
    assert found.fact_ids == ("b", "f", "s", "n")
    assert found.dkn == ("both", "first", "second", "none")
    assert found.counts() == {"both": 1, "first": 1, "second": 1, "none": 1}
    assert (found.not_known, found.only_first, found.only_second) == (("lost",), ("x",), ("y",))
    assert repr(found).startswith("<RunComparison: 4 facts known in both runs; DKN: 1 in both")


def test_changes_are_the_second_minus_the_first() -> None:
    one = known("a", q=3)
    other = dataclasses.replace(
        one,
        probability=0.75,
        neurons=one.neurons[3:],
        scores=one.scores[3:],
        components=one.components[1:],
        dkn=(),
        redundancy=math.nan,
        full_drop=one.full_drop - 0.25,
    )
    found = dkn.compare([one], [other])
    changes = {name: values.tolist() for name, values in found.changes.items()}
    assert changes.pop("full_drop") == pytest.approx([-0.25], abs=1e-15)
    assert math.isnan(changes.pop("redundancy")[0])
    assert changes == {
        "n_neurons": [-3.0],
        "n_components": [-1.0],
        "probability": [0.25],
        "partial_drop": [0.0],
        "excess": [0.0],
    }
    assert found.jaccard.tolist() == [10 / 13]


def test_overlap_counts_neurons_by_brute_force() -> None:
    a, b = known("a", seed=1), known("a", seed=2)
    sets = [set(map(tuple, r.neurons.tolist())) for r in (a, b)]
    expected = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert dkn.compare([a], [b]).jaccard.tolist() == [expected]
    none = dkn.FactResult("a", "ok")
    assert np.isnan(dkn.compare([none], [none]).jaccard).all()


def test_it_is_a_table_and_a_notebook_shows_it() -> None:
    found = dkn.compare(*runs())
    table = found.to_pandas()
    assert list(table.columns)[:4] == ["fact_id", "dkn", "jaccard", "change_of_n_neurons"]
    assert list(table["dkn"]) == list(found.dkn)
    assert list(table["change_of_excess"]) == found.changes["excess"].tolist()
    piece = found._repr_html_()
    assert "1 with a DKN in both, 1 in the first alone, 1 in the second alone" in piece
    assert "Other facts, in the second run alone: 1." in piece
    assert "change of full_drop" in piece
    nothing = dkn.compare([], [])
    assert len(nothing.to_pandas()) == 0
    assert "0 facts known" in nothing._repr_html_()


def test_it_is_frozen_and_pickled_and_a_fact_is_there_once() -> None:
    found = dkn.compare(*runs())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.dkn = ()  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(found)).dkn == found.dkn
    with pytest.raises(dkn.UserError, match="b must hold each fact once; got 'a' twice"):
        dkn.compare([known("a")], [known("a"), known("a")])
