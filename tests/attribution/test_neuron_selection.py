"""From scores to knowledge neurons, against plain sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dkn_engine.config import SelectionConfig
from dkn_engine.selection import BORDERLINE, select_neurons
from dkn_engine.types import Selection

SHAPE = (3, 11)


def drawn(seed: int = 0, n: int | None = None) -> np.ndarray:
    shape = SHAPE if n is None else (n, *SHAPE)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_loop(scores: np.ndarray, passes: Any) -> list[list[int]]:
    """Neurons that pass, by descending score, then layer and index."""
    found = [
        (-float(scores[l, i]), l, i)
        for l in range(scores.shape[0])
        for i in range(scores.shape[1])
        if passes(float(scores[l, i]))
    ]
    return [[l, i] for _, l, i in sorted(found)]


def select(scores: Any, **options: Any) -> Selection:
    return select_neurons(scores, SelectionConfig(**options))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.9])
def test_threshold_keeps_what_is_above_a_share_of_the_highest(threshold: float) -> None:
    scores = drawn()
    found = select(scores, threshold=threshold)
    highest = float(scores.max())
    expected = by_loop(scores, lambda s: s > threshold * highest)
    assert found.neurons.tolist() == expected
    assert found.neurons.dtype == np.int32
    assert found.scores.dtype == np.float32
    assert found.scores.tolist() == [scores[l, i] for l, i in expected]


@pytest.mark.parametrize("k", [1, 5, 33, 100])
def test_top_k_keeps_the_k_highest(k: int) -> None:
    scores = drawn()
    found = select(scores, method="top_k", top_k=k)
    assert found.neurons.tolist() == by_loop(scores, lambda _: True)[:k]


@pytest.mark.parametrize("percentile", [0.0, 50.0, 90.0])
def test_percentile_keeps_what_is_above_it(percentile: float) -> None:
    scores = drawn()
    found = select(scores, method="percentile", percentile=percentile)
    bound = float(np.percentile(scores, percentile))
    assert found.neurons.tolist() == by_loop(scores, lambda s: s > bound)


@pytest.mark.parametrize("method", ["threshold", "top_k", "percentile"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_without_a_positive_score_nothing_is_found(method: str, value: float) -> None:
    scores = np.full(SHAPE, value, dtype=np.float32)
    scores[0, 0] = min(value, -0.5)
    found = select(scores, method=method)
    assert found.neurons.shape == found.borderline.shape == (0, 2)
    assert found.scores.shape == (0,)


def test_ties_go_by_layer_and_index() -> None:
    scores = np.zeros(SHAPE, dtype=np.float32)
    for l, i in ((2, 1), (0, 7), (1, 3), (0, 2)):
        scores[l, i] = 0.5
    scores[1, 9] = 1.0
    expected = [[1, 9], [0, 2], [0, 7], [1, 3], [2, 1]]
    assert select(scores).neurons.tolist() == expected
    assert select(scores, method="top_k", top_k=3).neurons.tolist() == expected[:3]


def test_max_neurons_keeps_the_highest() -> None:
    scores = drawn()
    whole = select(scores, threshold=0.0)
    found = select(scores, threshold=0.0, max_neurons=4)
    assert found.neurons.tolist() == whole.neurons[:4].tolist()
    assert found.scores.tolist() == whole.scores[:4].tolist()
    # The cut is a threshold, too.
    assert whole.neurons[3].tolist() in found.borderline.tolist()


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, [0, 1, 2, 3]), (0.25, [0, 1, 2]), (0.5, [0, 1]), (0.75, [0])]
)
def test_neurons_are_found_by_more_than_a_share_of_the_prompts(
    share: float, expected: list[int]
) -> None:
    """Neuron i is found by the first 4 - i of four prompts."""
    scores = np.zeros((4, 1, 8), dtype=np.float32)
    for i in range(4):
        scores[: 4 - i, 0, i] = 1.0
    scores[0, 0, 7] = 0.1  # below every threshold
    found = select(scores, threshold=0.5, paraphrase_share=share)
    assert found.neurons[:, 1].tolist() == expected
    # The score is the mean over all prompts, also over those that do not find the neuron.
    assert found.scores.tolist() == [(4 - i) / 4 for i in expected]


def test_prompts_have_thresholds_of_their_own() -> None:
    scores = np.zeros((2, 1, 4), dtype=np.float32)
    scores[0, 0] = [10.0, 6.0, 4.0, 0.0]
    scores[1, 0] = [0.0, 0.6, 0.4, 1.0]
    found = select(scores, threshold=0.5, paraphrase_share=0.5)
    assert found.neurons[:, 1].tolist() == [1]
    assert found.scores[0] == pytest.approx(3.3)


def test_one_prompt_is_the_same_with_and_without_its_axis() -> None:
    scores = drawn()
    with_axis, without = select(scores[None]), select(scores)
    assert with_axis.neurons.tolist() == without.neurons.tolist()
    assert with_axis.scores.tolist() == without.scores.tolist()


@pytest.mark.parametrize("method", ["threshold", "top_k"])
def test_borderline_lists_both_sides_of_the_threshold(method: str) -> None:
    scores = np.zeros((2, 6), dtype=np.float64)
    scores[0] = [1.0, 0.5 + 0.5 * BORDERLINE, 0.5 - 0.5 * BORDERLINE, 0.5, 0.5 + 3e-5, 0.5 - 3e-5]
    options: dict[str, Any] = {"method": method, "threshold": 0.5, "top_k": 4}
    found = select(scores, **options)
    assert found.borderline.tolist() == [[0, 1], [0, 3], [0, 2]]
    assert [0, 2] not in found.neurons.tolist()
    assert [0, 1] in found.neurons.tolist()


def test_borderline_scales_with_the_highest_score() -> None:
    scores = np.zeros((1, 4), dtype=np.float64)
    scores[0] = [1000.0, 500.004, 499.98, 0.0]
    assert select(scores, threshold=0.5).borderline.tolist() == [[0, 1]]


def test_a_neuron_close_to_the_threshold_of_one_prompt_is_borderline() -> None:
    scores = np.zeros((3, 1, 3), dtype=np.float64)
    scores[:, 0, 0], scores[:, 0, 1] = 1.0, 0.9
    scores[1, 0, 2] = 0.5
    assert select(scores, threshold=0.5).borderline.tolist() == [[0, 2]]


@pytest.mark.parametrize(
    "scores",
    [np.zeros(5), np.zeros((0, 2, 3)), np.zeros((1, 1, 2, 3)), np.float64(1)],
    ids=["one axis", "no prompt", "four axes", "a number"],
)
def test_other_shapes_are_refused(scores: Any) -> None:
    with pytest.raises(ValueError, match=r"scores must be \[L, F\] or \[n, L, F\]"):
        select(scores)


def test_whole_numbers_are_scores_too() -> None:
    """The mean of two prompts is no whole number."""
    found = select(np.array([[[3, 2, 0]], [[2, 3, 0]]]), threshold=0.5)
    assert found.neurons[:, 1].tolist() == [0, 1]
    assert found.scores.tolist() == [2.5, 2.5]
