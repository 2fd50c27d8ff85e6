"""The file forms of other tools: round trips, the forms themselves, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkn_engine.errors import UserError
from dkn_engine.interchange import (
    FactNeurons,
    fact_neurons,
    read_eleuther,
    read_released,
    write_eleuther,
    write_released,
)
from dkn_engine.types import Component, FactResult


def neurons(*pairs: tuple[int, int]) -> Any:
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


def results() -> list[FactResult]:
    """Neurons not in order of layers; a DKN that is not the first components; a fact without."""
    found = neurons((3, 7), (1, 500), (3, 2), (0, 9), (2, 2))
    parts = [found[[0, 3]], found[[1]], found[[2, 4]]]
    components = tuple(Component(np.sort(p, axis=0), 0.0, 1.0, 1.0) for p in parts)
    return [
        FactResult(
            "Q1_P54_2015",
            "ok",
            neurons=found,
            scores=found[:, 0],
            components=components,
            dkn=(2, 1),
        ),
        FactResult("Ein Ü \u2028", "not_known", "rank 3"),
    ]


def plain(facts: list[FactNeurons]) -> list[Any]:
    return [(f.fact_id, f.neurons.tolist(), [c.tolist() for c in f.clusters], f.dkn) for f in facts]


def test_eleuther_files_have_the_packages_form(tmp_path: Path) -> None:
    path = tmp_path / "demo_pararel_neurons_0.json"
    write_eleuther(path, results())
    assert path.read_text(encoding="utf-8").startswith(
        '{\n    "Q1_P54_2015": [\n        [\n            3,\n            7\n        ],\n'
    )
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "Q1_P54_2015": [[3, 7], [1, 500], [3, 2], [0, 9], [2, 2]],
        "Ein Ü \u2028": [],
    }


def test_eleuther_files_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "neurons.json"
    write_eleuther(path, results())
    found = read_eleuther(path)
    assert plain(found) == [(r.fact_id, r.neurons.tolist(), [], ()) for r in results()]
    assert all(f.neurons.dtype == np.int32 and f.neurons.shape[1:] == (2,) for f in found)
    again = tmp_path / "again.json"
    write_eleuther(again, found)
    assert again.read_bytes() == path.read_bytes()


def test_eleuther_files_keep_the_site(tmp_path: Path) -> None:
    path = tmp_path / "neurons.json"
    write_eleuther(path, results(), site="pre")
    assert json.loads(path.read_text(encoding="utf-8"))["site"] == "pre"
    found = read_eleuther(path)
    assert plain(found) == [(r.fact_id, r.neurons.tolist(), [], ()) for r in results()]
    assert {f.site for f in found} == {"pre"}
    again = tmp_path / "again.json"
    write_eleuther(again, found)
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match=r"facts of one file must have one site.* got None, pre"):
        write_eleuther(again, [found[0], FactNeurons("other", neurons())])
    with pytest.raises(UserError, match=r"none the id 'site'; got pre"):
        write_eleuther(again, [FactNeurons("site", neurons())], site="pre")


@pytest.mark.parametrize(
    ("name", "key"), [("temporal_results_0.json", "neurons"), ("a.jsonl", "kn")]
)
def test_released_files_have_the_published_form(tmp_path: Path, name: str, key: str) -> None:
    path = tmp_path / name
    write_released(path, results())
    text = path.read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()]
    assert len(entries) == (2 if key == "kn" else 1)
    table = {k: v for entry in entries for k, v in entry.items()}
    assert table["Q1_P54_2015"] == {
        key: [[3, 7], [1, 500], [3, 2], [0, 9], [2, 2]],
        "dkn_cluster_1": [[[0, 7], [3, 9]], [[1, 500]], [[2, 2], [3, 2]]],
        "dkn_cluster_2": [[[2, 2], [3, 2]], [[1, 500]]],
    }


@pytest.mark.parametrize("name", ["results.json", "results.jsonl"])
def test_released_files_round_trip(tmp_path: Path, name: str) -> None:
    write_released(tmp_path / name, results())
    found = read_released(tmp_path / name)
    assert plain(found) == plain(fact_neurons(results()))
    write_released(tmp_path / f"again-{name}", found)
    assert (tmp_path / f"again-{name}").read_bytes() == (tmp_path / name).read_bytes()


def test_released_llama_runs_without_candidates_are_read(tmp_path: Path) -> None:
    """Their lines hold the kept clusters of several clusterers, but no ``dkn_cluster_1``."""
    entry = {
        "kn": [[1, 2], [3, 4]],
        "dkn_cluster_2": [[[1, 2]], [[3, 4]]],
        "dkn_cluster_2_dbscan": [[[1, 2], [3, 4]]],
    }
    path = tmp_path / "temporal_results_0.jsonl"
    path.write_text(json.dumps({"Q1": entry}) + "\n", encoding="utf-8")
    assert plain(read_released(path)) == [("Q1", [[1, 2], [3, 4]], [[[1, 2]], [[3, 4]]], (0, 1))]
    (one,) = read_released(path, "dkn_cluster_2_dbscan")
    assert [c.tolist() for c in one.clusters] == [[[1, 2], [3, 4]]]


def test_released_clusters_of_another_clusterer_stand_behind_the_candidates(tmp_path: Path) -> None:
    entry = {"neurons": [], "dkn_cluster_1": [[[1, 2]]], "dkn_cluster_2_kmeans": [[[5, 6]]]}
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"Q1": entry}), encoding="utf-8")
    (one,) = read_released(path, "dkn_cluster_2_kmeans")
    assert ([c.tolist() for c in one.clusters], one.dkn) == ([[[1, 2]], [[5, 6]]], (1,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold an object with fact ids as keys; got list"),
        ('{"a": [[1, 2]]', "broken JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": [], "a": []}', "the key 'a' is there twice"),
        ('{"a": 1}', "fact 'a' must be a list of [layer, index] pairs; got int"),
        ('{"a": [[1, 2, 3]]}', "fact 'a' must hold [layer, index] pairs of integers from 0"),
        ('{"a": [[1, -2]]}', "integers from 0; got [1, -2]"),
        ('{"a": [[1, 2.0]]}', "integers from 0; got [1, 2.0]"),
        ('{"a": [[true, 2]]}', "integers from 0; got [True, 2]"),
        ('{"a": [[1, 4294967296]]}', "integers from 0; got [1, 4294967296]"),
    ],
)
def test_broken_eleuther_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "neurons.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_eleuther(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": []}', "fact 'a' must be an object; got list"),
        ('{"a": {}}', "fact 'a' has neither 'neurons' nor 'kn'; found []"),
        ('{"a": {"kn": []}}', "fact 'a' has no 'dkn_cluster_2'; found ['kn']"),
        ('{"a": {"kn": [], "dkn_cluster_2": {}}}', "'dkn_cluster_2' must be a list of clusters"),
        ('{"a": {"kn": [], "dkn_cluster_2": [[1, 2]]}}', "'dkn_cluster_2'[0] must hold [layer"),
        ('{"a": {"kn": [1], "dkn_cluster_2": []}}', "'kn' must hold [layer, index] pairs"),
    ],
)
def test_broken_released_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("\n" + text + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_released(path)
    assert message in str(caught.value)


def test_a_repeated_fact_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = '{"a": {"kn": [], "dkn_cluster_2": []}}\n'
    path.write_text(line + line, encoding="utf-8")
    with pytest.raises(UserError, match=r"results\.jsonl:2: fact 'a' is there twice"):
        read_released(path)
    with pytest.raises(UserError, match="fact ids must be unique; got 'a' twice"):
        write_eleuther(path, [FactNeurons("a", neurons()), FactNeurons("a", neurons())])


def test_paths_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.json .* or \.jsonl"):
        write_released(tmp_path / "results.csv", [])
    with pytest.raises(UserError, match="there is no folder"):
        write_eleuther(tmp_path / "nowhere" / "neurons.json", [])
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_eleuther(tmp_path / "absent.json")
    latin = tmp_path / "latin.json"
    latin.write_bytes('{"Ü": []}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8: .* at byte 2"):
        read_eleuther(latin)
