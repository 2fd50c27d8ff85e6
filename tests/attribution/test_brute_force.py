"""The oracle itself: copies of one sequence in a batch are as each of them alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.brute_force_encoders import EncoderBruteForce, EncoderDecoderBruteForce
from tests.support.brute_force_scores import BruteForce, Point
from tests.support.tiny import FAMILIES, N_LAYERS, WIDTH, relative_error, sequence, tiny
from tests.support.tiny_encoder_decoders import MODELS, asked, model_of
from tests.support.tiny_encoders import ENCODERS, sentences, tiny_encoder


def require_apart(oracle: BruteForce, copy: Any, points: list[Point]) -> None:
    """Objectives and gradients are those of each point's copy in a pass of its own."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(len(points), WIDTH, generator=random, dtype=torch.float64)
    found = oracle.objectives(copy, points, x, "logit").detach()
    gradients = oracle.gradients(copy, points, x, "logit")
    for n, (point, one) in enumerate(zip(points, x, strict=True)):
        alone = oracle.objectives(copy, [point], one[None], "logit").detach()
        assert relative_error(found[n], alone[0]) < 1e-6  # some families round to float32
        (alone,) = oracle.gradients(copy, [point], one[None], "logit")
        torch.testing.assert_close(gradients[n], alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "changes"), [*((name, {}) for name in FAMILIES), ("falcon", {"alibi": True})]
)
def test_copies_do_not_reach_one_another(name: str, changes: dict[str, Any]) -> None:
    """Of a place before the one that predicts, and of two of these."""
    oracle = BruteForce(name, tiny(name, **changes), "post")
    points = [Point(0, 4, 5, 7), Point(1, 4, 4, 9), Point(N_LAYERS - 1, 5, 5, 7)]
    require_apart(oracle, sequence(5, 2).ids, points)


@pytest.mark.parametrize("name", ENCODERS)
def test_copies_of_an_encoder_do_not_reach_one_another(name: str) -> None:
    oracle = EncoderBruteForce(name, tiny_encoder(name), "post")
    points = [Point(0, 1, 4, 7), Point(1, 4, 4, 9), Point(N_LAYERS - 1, 5, 5, 7)]
    require_apart(oracle, sentences()[0].ids, points)


@pytest.mark.parametrize("name", MODELS)
def test_copies_of_an_encoder_decoder_do_not_reach_one_another(name: str) -> None:
    oracle, one = EncoderDecoderBruteForce(name, model_of(name), "post"), asked()[1]
    points = [Point(0, 0, 2, 7), Point(1, 1, 3, 9), Point(N_LAYERS - 1, 3, 3, 7)]
    require_apart(oracle, oracle.read_by(one), points)
