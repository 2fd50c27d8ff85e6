"""What a model says to a prompt does not depend on how long others of the same call are."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dkn_engine.analysis.experiments.evolvability.answers import read_answers
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.lengths import length_groups, padded_batches
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import LEFT, fixed
from tests.support.brute_force_edits import answer_probability
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import FAMILIES, MASK_ID, relative_error, sequence, tiny
from tests.support.tiny_encoders import tiny_encoder

SHORT = 8  # the original context: longer sequences get other frequencies in all their positions
# Own lengths 5, 14, 9 (the answer leads across the border), 8 and 20.
MIXED = [
    sequence(5, 1),
    sequence(14, 1, seed=1),
    sequence(7, 3, seed=2),
    sequence(7, 2, seed=3),
    sequence(19, 2, seed=4),
]


def longrope() -> Any:
    """Phi-3 as its 128k versions are."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.0, 1.0],
        "long_factor": [8.0, 0.25, 4.0],
        "original_max_position_embeddings": SHORT,
        "rope_theta": 100.0,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tiny("phi3", rope_parameters=rope, original_max_position_embeddings=SHORT)


class StretchedAttention(nn.Module):
    """An attention whose scale follows the longest sequence of the batch, in a place of its own."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: Any, **more: Any) -> Any:
        out, weights = self.attention(hidden_states, **more)
        return out * (1 + 0.1 * max(0, hidden_states.shape[1] - SHORT)), weights


def stretched() -> Any:
    model = tiny("llama")
    layer = model.model.layers[1]
    layer.self_attn = StretchedAttention(layer.self_attn)
    return model


@pytest.mark.parametrize("baseline", ["masked", "zero"])
def test_scores_of_mixed_lengths_are_those_of_each_alone(baseline: Any) -> None:
    model = longrope()
    oracle = BruteForce("phi3", model, "post")
    config = fixed(baseline=baseline)
    found = attribute_chunk(model, find_layout(model), MIXED, config, mask_id=MASK_ID)
    assert found.path == "sweep"
    for i, one in enumerate(MIXED):
        expected = oracle.scores(one, LEFT, baseline).mean(0)
        assert relative_error(found.scores[i], expected) < 1e-6
        alone = attribute_chunk(model, find_layout(model), [one], config, mask_id=MASK_ID)
        assert relative_error(found.scores[i], alone.scores[0]) < 1e-9
        assert found.probability[i] == pytest.approx(alone.probability[0], rel=1e-10)
        np.testing.assert_allclose(
            found.convergence_delta[i], alone.convergence_delta[0], atol=1e-9
        )
        np.testing.assert_array_equal(found.n_points[i], alone.n_points[0])


@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
def test_edited_probabilities_are_those_of_each_alone(positions: str) -> None:
    model = longrope()
    edits = [suppress(np.array(n, np.int32).reshape(-1, 2)) for n in ([], [[0, 3], [1, 5], [2, 7]])]
    prompts = Prompts(model, find_layout(model), MIXED, positions=positions)
    found = prompts.probabilities(edits)
    expected = [[answer_probability("phi3", model, s, e, positions) for s in MIXED] for e in edits]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(prompts.probability, expected[0], rtol=1e-6)
    np.testing.assert_allclose(
        prompts.probabilities(edits, [1, 2]), np.array(expected)[:, [1, 2]], rtol=1e-6
    )
    oracle = BruteForce("phi3", model, "post")
    first = [oracle.activations(s.ids, s.n_prompt - 1).numpy() for s in MIXED]
    np.testing.assert_allclose(prompts.first_activations(), first, rtol=1e-5, atol=1e-8)


def test_answers_read_before_and_after_training_are_those_of_each_alone() -> None:
    model = longrope()
    nothing = suppress(np.empty((0, 2), np.int32))
    expected = [answer_probability("phi3", model, s, nothing) for s in MIXED]
    np.testing.assert_allclose(read_answers(model, MIXED).probability, expected, rtol=1e-6)


def lengths_of(groups: list[list[int]], lengths: list[int]) -> list[list[int]]:
    return [[lengths[i] for i in group] for group in groups]


def test_only_lengths_that_are_read_alike_share_a_batch() -> None:
    lengths = [5, 14, 9, 8, 20]
    grouped = length_groups(longrope(), lengths)
    assert sorted(map(sorted, lengths_of(grouped, lengths))) == [[5, 8], [9, 14, 20]]
    grouped = length_groups(stretched(), lengths)
    assert sorted(map(sorted, lengths_of(grouped, lengths))) == [[5, 8], [9], [14], [20]]


@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_models_take_all_lengths_in_one_batch(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert length_groups(tiny(name, dtype), [5, 14, 9, 8, 20]) == [[0, 1, 2, 3, 4]]


def test_a_model_is_asked_once() -> None:
    model, seen = tiny("llama"), []
    model.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(1))
    length_groups(model, [5, 20, 9])
    assert len(seen) == 2
    length_groups(model, [6, 20])
    length_groups(model, [7])
    length_groups(model, [])
    assert len(seen) == 2


def test_an_attention_of_ones_own_that_reads_the_length() -> None:
    """Nothing but the result tells; the sweep cannot run, and the general path must not mix."""
    model = stretched()
    config = AttributionConfig(baseline="masked", quadrature="riemann_left", n_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = attribute_chunk(model, find_layout(model), MIXED[:2], config, mask_id=MASK_ID)
    for i in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = attribute_chunk(model, find_layout(model), [MIXED[i]], config, mask_id=MASK_ID)
        assert relative_error(found.scores[i], alone.scores[0]) < 1e-9


def test_given_baselines_stay_with_their_sequences() -> None:
    model = longrope()
    layout = find_layout(model)
    config = fixed(baseline="given")
    noise = torch.Generator().manual_seed(1)
    given = torch.randn(len(MIXED), 3, layout.width, generator=noise, dtype=torch.float64)
    found = attribute_chunk(model, layout, MIXED, config, baselines=given)
    some: list[AnswerSequence] = MIXED
    for i, one in enumerate(some):
        alone = attribute_chunk(model, layout, [one], config, baselines=given[i : i + 1])
        assert relative_error(found.scores[i], alone.scores[0]) < 1e-9


@pytest.mark.parametrize("most", [1, 7, 24, 1000])
def test_batches_are_of_like_lengths_and_hold_what_is_allowed(most: int) -> None:
    """Every sequence once, the longest first, equals in their order; a full batch is full."""
    lengths = np.random.default_rng(0).integers(1, 9, size=23).tolist()
    found = list(padded_batches(tiny("llama"), lengths, most))
    in_order = [i for batch in found for i in batch]
    assert in_order == sorted(range(23), key=lambda i: (-lengths[i], i))
    for batch, behind in itertools.zip_longest(found, found[1:]):
        longest = lengths[batch[0]]
        assert len(batch) == 1 or longest * len(batch) <= most
        assert behind is None or longest * (len(batch) + 1) > most
    assert list(padded_batches(tiny("llama"), [], most)) == []


def test_an_encoders_batches_are_of_one_length() -> None:
    lengths = [3, 5, 3, 3, 5]
    found = list(padded_batches(tiny_encoder("bert"), lengths, 6))
    assert sorted(map(sorted, found)) == [[0, 2], [1], [3], [4]]
