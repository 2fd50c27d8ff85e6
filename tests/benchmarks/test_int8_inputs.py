"""The plain loops of the benchmark on rounded inputs, on a model that rounds nothing."""

from __future__ import annotations

import numpy as np

from benchmarks.science.int8_inputs import N_POINTS, Asked, apart_in_batches, scores
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import FLOAT64
from tests.support.tiny import N_LAYERS, relative_error, tiny

IDS, TARGET = (5, 9, 7, 20), 11


def test_scores_are_the_engines_and_complete() -> None:
    model = tiny("llama")
    config = AttributionConfig(baseline="zero", quadrature="gauss_legendre", n_steps=N_POINTS)
    one = AnswerSequence(IDS, len(IDS), (TARGET,))
    expected = attribute_chunk(model, find_layout(model), [one], config)
    for layer in range(N_LAYERS):
        found, error = scores(model, layer, Asked(IDS, TARGET))
        assert relative_error(found, expected.scores[0, layer]) < FLOAT64
        np.testing.assert_allclose(error, abs(expected.convergence_delta[0, layer]), atol=1e-7)


def test_a_plain_model_gives_the_same_in_a_batch() -> None:
    facts = [Asked(IDS, TARGET), Asked(IDS[::-1], TARGET), Asked(IDS[:3], TARGET)]
    assert max(apart_in_batches(tiny("llama"), facts)) < FLOAT64
