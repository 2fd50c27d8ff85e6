"""Given neurons go through what a run does with its own, and give the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from tests.run.test_pipeline import CONFIG, answered, assert_equal, facts, model, results
from tests.support.words import words_tokenizer

__all__ = ["model", "results"]  # fixtures
ONE_CHUNK = dataclasses.replace(CONFIG, facts_per_chunk=8)
OF_ATTRIBUTION = {"scores", "borderline", "convergence_delta", "n_points", "converged", "path"}


def examine(model: Any, some: Any, neurons: Any) -> dkn.Results:
    return dkn.examine(model, words_tokenizer(), some, neurons, ONE_CHUNK)


def test_a_runs_own_neurons_give_the_runs_results(model: Any) -> None:
    """Bit for bit, in batches of the same facts, all that is not attribution's."""
    some = facts(model)
    expected = dkn.find_dkns(model, words_tokenizer(), some, ONE_CHUNK)
    found = examine(model, some, {r.fact_id: r.neurons for r in expected})
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        for field in dataclasses.fields(one):
            if field.name not in OF_ATTRIBUTION:
                assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)
        assert one.components
        assert one.controls
        assert np.isnan(one.scores).all()
        assert len(one.scores) == len(one.neurons)
        assert (one.path, len(one.n_points)) == ("", 0)


def test_the_same_neurons_may_be_given_for_all_facts_and_are_shown(model: Any) -> None:
    neurons = [[0, 1], [0, 5], [1, 2], [1, 7]]
    found = examine(model, facts(model)[:2], neurons)
    assert [r.neurons.tolist() for r in found] == [neurons] * 2
    assert len(found[0].connection_weights) == 4
    assert "scores not known" in dkn.plot.graph(found[0]).axes[-1].get_xlabel()
    assert found[0]._repr_html_()
    (alone,) = examine(model, facts(model)[0], neurons)
    np.testing.assert_allclose(alone.subset_probabilities, found[0].subset_probabilities, rtol=1e-5)


def test_facts_without_neurons_or_not_known_are_results_too(model: Any) -> None:
    known, other = facts(model)[0], answered(model, 1)
    wrong = dataclasses.replace(other, id="wrong", answer=f"{other.answer} {other.answer}")
    found = examine(model, [known, wrong], {"wrong": [[0, 1]]})
    assert found[0].status == "ok"
    assert len(found[0].neurons) == len(found[0].components) == 0
    assert found[1].status == "not_known"


@pytest.mark.parametrize(
    ("neurons", "error", "message"),
    [
        ([[0, 1], [0, 1]], ValueError, "neurons must be distinct"),
        ([[9, 1]], ValueError, r"below layer \d+ and index \d+; got \(9, 1\)"),
        ([[0, 10_000]], ValueError, r"got \(0, 10000\)"),
        ([[0.5, 1]], TypeError, "neurons must be integers"),
        ({"x": [[0, 1]]}, dkn.UserError, "the key 'x', which is the id of none"),
    ],
)
def test_neurons_that_are_none_of_the_models_are_refused(
    model: Any, neurons: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        examine(model, facts(model)[0], neurons)
