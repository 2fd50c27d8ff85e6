"""The highest scores of an attribution."""

from __future__ import annotations

import numpy as np
import pytest

import dkn_engine as dkn


def attribution(scores: np.ndarray) -> dkn.Attribution:
    n, layers, _ = scores.shape
    per_layer = np.zeros((n, layers))
    return dkn.Attribution(
        tuple("abcdef"[:n]),
        scores.astype(np.float32),
        per_layer.astype(np.float32),
        np.zeros(n),
        per_layer.astype(np.int32),
        per_layer.astype(bool),
        np.zeros(n, np.float32),
        ("sweep",) * n,
    )


def test_the_highest_scores_come_first_and_ties_by_layer_and_index() -> None:
    scores = np.random.default_rng(0).integers(-4, 5, (3, 4, 7))
    found = attribution(scores).top(9)
    assert list(found) == ["a", "b", "c"]
    for table, neurons in zip(scores, found.values(), strict=True):
        every = sorted(np.ndindex(4, 7), key=lambda n: (-table[n], n))
        assert neurons.dtype == np.int32
        assert neurons.tolist() == [list(n) for n in every[:9]]
    assert len(attribution(scores).top(100)["a"]) == 28
    assert attribution(scores[:0]).top() == {}


def test_they_are_a_table() -> None:
    scores = np.random.default_rng(1).normal(size=(2, 3, 40))
    one = attribution(scores)
    table = one.to_pandas(5)
    assert list(table.columns) == ["fact_id", "layer", "index", "score"]
    assert list(table["fact_id"]) == ["a"] * 5 + ["b"] * 5
    assert table[["layer", "index"]].to_numpy()[5:].tolist() == one.top(5)["b"].tolist()
    highest = np.sort(one.scores[1].ravel())[::-1][:5]
    assert list(table["score"][5:]) == highest.tolist()
    assert len(one.to_pandas()) == 40
    assert list(attribution(scores[:0]).to_pandas().columns) == list(table.columns)


@pytest.mark.parametrize("k", [0, -1, 1.5, "3", None])
def test_a_number_that_is_none_is_refused(k: object) -> None:
    with pytest.raises(dkn.UserError, match="k must be an integer of at least 1; got"):
        attribution(np.zeros((1, 2, 3))).top(k)  # type: ignore[arg-type]
