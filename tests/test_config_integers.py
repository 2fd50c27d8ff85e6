"""Counts and seeds as programs compute them: NumPy's integers are Python's, all else is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dkn_engine as dkn
from dkn_engine import analysis, topology
from dkn_engine.attribution import iter_attribute
from dkn_engine.errors import UserError
from dkn_engine.facts.given import fact_list
from dkn_engine.files.sections import integer
from dkn_engine.seeds import generator
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

FACT = dkn.Fact("a", "w5 w9", "w13")
INTEGERS = pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8])
OTHERS = pytest.mark.parametrize("value", [True, np.bool_(True), np.float64(2), "2", None])
ONE = np.ones((4, 3))


def graph() -> tuple[list[list[int]], NDArray[np.float64], NDArray[np.float64]]:
    return [[0, 0], [1, 1], [2, 0], [2, 1]], ONE * np.arange(1, 5)[:, None], ONE


@INTEGERS
def test_an_integer_of_numpy_is_the_plain_one(kind: Any) -> None:
    assert (integer(kind(7)), type(integer(kind(7)))) == (7, int)


@OTHERS
def test_nothing_else_is_an_integer(value: Any) -> None:
    assert integer(value) is None


@INTEGERS
def test_a_span_is_any_integer(kind: Any) -> None:
    plain = topology.distances(*graph(), max_span=1)
    np.testing.assert_array_equal(topology.distances(*graph(), max_span=kind(1)), plain)


@INTEGERS
@pytest.mark.parametrize("name", ["random", "kmeans"])
def test_the_seed_of_a_clusterer_is_any_integer(kind: Any, name: str) -> None:
    sets = [
        [c.neurons.tolist() for c in topology.cluster(name, topology.Located(*graph(), seed=seed))]
        for seed in (3, kind(3))
    ]
    assert sets[0] == sets[1]


@INTEGERS
def test_a_seed_is_any_integer(kind: Any) -> None:
    assert generator(kind(3), "a").integers(1 << 60) == generator(3, "a").integers(1 << 60)


@OTHERS
def test_a_number_of_neurons_that_is_no_integer_is_refused(value: Any) -> None:
    model = tiny("llama", torch.float32)
    with pytest.raises(UserError, match=r"^n_top must be an integer of at least 1; got "):
        iter_attribute(model, words_tokenizer(), [FACT], keep="top", n_top=value)


@OTHERS
def test_a_number_of_draws_that_is_no_integer_is_refused(value: Any) -> None:
    model = tiny("llama", torch.float32)
    with pytest.raises(UserError, match=r"^n_draws must be an integer of at least 1; got "):
        analysis.compare_clusterers(model, words_tokenizer(), [FACT], n_draws=value)


@OTHERS
@pytest.mark.parametrize("name", ["n_random", "n_folds"])
def test_counts_of_a_fact_check_that_are_no_integers_are_refused(value: Any, name: str) -> None:
    counts: dict[str, Any] = {"n_random": np.int64(2), "n_folds": 2} | {name: value}
    with pytest.raises(UserError, match=f"^{name} must be an integer of at least [12]; got "):
        analysis.FactCheckConfig(**counts)


def test_texts_of_a_mapping_may_be_an_array() -> None:
    (fact,) = fact_list({"id": "a", "prompt": "b", "answer": "c", "aliases": np.array(["d", "e"])})
    assert fact.aliases == ("d", "e")
    assert {type(text) for text in fact.aliases} == {str}
