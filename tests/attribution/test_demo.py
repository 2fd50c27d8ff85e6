"""The public verb on the demo model: completeness, measured errors, batching."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.attribution.paths import Paths, Points
from dkn_engine.attribution.sweep import Sweep
from dkn_engine.config import FactsConfig
from dkn_engine.forward.contexts import AnswerSequence, build_contexts
from dkn_engine.forward.prefill import prefill
from dkn_engine.forward.row_check import checked_rows
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import encode_fact
from tests.support.demo import demo_model

FACTS = [
    dkn.Fact("germany", "The capital of Germany is", "Berlin"),
    dkn.Fact("denmark", "Copenhagen is the capital of", "Denmark"),
]
N_FACTS = {"masked": 2, "zero": 1}
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    return demo_model()


@pytest.fixture(scope="module")
def attributed(demo: tuple[Any, Any]) -> Callable[[Any], Any]:
    """Attribution with a baseline, computed once; from zero of one fact, as its path is longer."""

    @functools.cache
    def of(baseline: Any) -> Any:
        config = dkn.AttributionConfig(baseline=baseline, tolerance=TOLERANCE)
        return dkn.attribute(*demo, FACTS[: N_FACTS[baseline]], config)

    return of


@pytest.fixture(scope="module", params=["masked", "zero"])
def attribution(request: pytest.FixtureRequest, attributed: Callable[[Any], Any]) -> Any:
    return request.param, attributed(request.param)


def test_the_demo_model_is_swept_and_converges(attribution: Any) -> None:
    baseline, found = attribution
    n = N_FACTS[baseline]
    assert found.path == ("sweep", "sweep")[:n]
    assert found.fact_ids == ("germany", "denmark")[:n]
    assert found.scores.shape == (n, 30, 1536)
    assert found.converged.all()
    assert (found.error <= TOLERANCE).all()
    # The trial of the design: Berlin 0.80, Denmark 0.82.
    assert np.allclose(found.probability, [0.80, 0.82][:n], atol=0.01)


def test_scores_are_complete_in_every_layer(attribution: Any) -> None:
    """The delta is one of the two errors that are refined, so it is within tolerance, too."""
    _, found = attribution
    for scores, delta in zip(found.scores, found.convergence_delta, strict=True):
        # Besides: the rounding of p, of about 1, in float32, in each of 30 layers.
        rounding = 64 * np.finfo(np.float32).eps * np.sqrt(30)
        assert np.linalg.norm(delta) <= TOLERANCE * np.linalg.norm(scores) + rounding


def test_few_points_are_paid(attribution: Any) -> None:
    """Means of the design: 6 points a layer (masked baseline), 20 (zero)."""
    baseline, found = attribution
    tokens = 1  # of each answer
    assert found.n_points.mean() <= {"masked": 7, "zero": 20}[baseline] * tokens


def test_measured_error_of_the_first_layer_with_the_zero_baseline(
    demo: tuple[Any, Any], attributed: Callable[[Any], Any]
) -> None:
    """Against 640 points: this layer turns within a hundredth of the path, inside it."""
    model, tokenizer = demo
    found = attributed("zero").scores[0]
    panels = np.arange(80)[:, None]
    x, w = np.polynomial.legendre.leggauss(8)
    dense = ((panels + (x + 1) / 2) / 80).ravel(), np.tile(w / 160, 80)
    expected = layer_scores(model, tokenizer, FACTS[0], 0, *dense)
    error = np.linalg.norm(found[0] - expected)
    assert error <= TOLERANCE * np.linalg.norm(found)
    # The released rule with 20 points leaves at least 2 % here.
    left = np.arange(20) / 20, np.full(20, 1 / 20)
    released = layer_scores(model, tokenizer, FACTS[0], 0, *left)
    assert np.linalg.norm(released - expected) > 0.02 * np.linalg.norm(found)


def layer_scores(
    model: Any, tokenizer: Any, fact: dkn.Fact, layer: int, alphas: Any, weights: Any
) -> Any:
    """One layer's scores from the zero baseline by a rule's points and weights."""
    encoded = encode_fact(tokenizer, fact.prompt, fact.answer, config=FactsConfig())
    ids = encoded.prompt_ids + encoded.answer_ids[:-1]
    one = AnswerSequence(ids, len(encoded.prompt_ids), encoded.answer_ids)
    layout, contexts = find_layout(model), build_contexts([one], torch.device("cpu"))
    alpha, weight = torch.from_numpy(alphas), torch.from_numpy(weights).float()
    with guest(model, grad=True):
        clean = prefill(model, layout, contexts)
        rows = checked_rows(model, layout, contexts, clean, "auto")
        zero = torch.zeros_like(clean.post)
        paths = Paths(layout, "post", clean.post, zero, None, "delta", "auto")
        none = torch.zeros(len(alpha), dtype=torch.int64)
        points = Points(none, none + layer, alpha)
        gradients, _ = Sweep(rows, paths, "probability", 256).evaluate(points)
        return paths.scores(layer, gradients, alpha, weight[None], none, none[:1])[0, 0].numpy()


def test_one_by_one_gives_the_same(demo: tuple[Any, Any], attributed: Callable[[Any], Any]) -> None:
    """From the masked baseline; from zero the same rounds refine more panels of the same facts.

    Of tiny models, which cost nothing, all of this is in test_sweep.py.
    """
    found = attributed("masked")
    config = dkn.AttributionConfig(baseline="masked", tolerance=TOLERANCE)
    alone = dkn.attribute(*demo, FACTS[1:], config)
    largest = np.abs(found.scores[1]).max()
    assert np.abs(alone.scores[0] - found.scores[1]).max() < 1e-5 * largest
    assert np.array_equal(alone.n_points[0], found.n_points[1])
