"""The error estimate includes rounding, as the model's own float64 run shows it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores
from dkn_engine.config import AttributionConfig
from dkn_engine.models.layout import find_layout
from tests.support.tiny import MASK_ID, relative_error, sequence, tiny


@functools.cache
def scores_of(
    name: str, n_prompt: int, *, weights: torch.dtype, wide: bool = False, **options: Any
) -> ChunkScores:
    """Computed in the precision of the weights, or with the same weights in float64."""
    longer: dict[str, Any] = (
        {"n_positions": 512} if name == "gpt2" else {"max_position_embeddings": 512}
    )
    model = tiny(name, **longer).to(weights)
    if wide:
        model = model.double()
    one, config = [sequence(n_prompt, 1, seed=n_prompt)], AttributionConfig(**options)
    return attribute_chunk(model, find_layout(model), one, config, mask_id=MASK_ID)


in_float32 = functools.partial(scores_of, weights=torch.float32)
in_float64 = functools.partial(scores_of, weights=torch.float32, wide=True)


# How long masked copies will take is told where a clean pass was slow, as beside other work.
FORECAST = pytest.mark.filterwarnings("ignore:masked baseline:UserWarning")


@FORECAST
@pytest.mark.parametrize("n_prompt", [40, 200])
@pytest.mark.parametrize("name", ["gemma3", "llama", "gpt2"])
def test_long_prompts_of_which_one_token_is_masked(name: str, n_prompt: int) -> None:
    """x' comes close to x, and their difference keeps the rounding of both."""
    found = in_float32(name, n_prompt)
    truth = relative_error(found.scores, in_float64(name, n_prompt, tolerance=1e-5).scores)
    assert truth / 2 < found.error[0] < max(10 * truth, 1e-3)
    assert found.converged.all()
    if n_prompt == 200:
        assert 5e-6 < truth < found.error[0] < 10 * truth


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("name", ["gpt2", "phi"])
def test_a_tolerance_that_the_dtype_does_not_allow_is_not_reached(name: str, baseline: Any) -> None:
    found = in_float32(name, 9, baseline=baseline, tolerance=1e-6)
    double = in_float64(name, 9, baseline=baseline, tolerance=1e-6)
    truth = relative_error(found.scores, double.scores)
    assert truth < found.error[0] < 20 * truth
    assert not found.converged.all()
    assert double.converged.all()
    assert double.error[0] < 1e-6
    # More points do not help against rounding, so none are paid for it.
    assert found.n_points.sum() < 2 * double.n_points.sum()


def test_short_formats_say_so() -> None:
    found = scores_of("gpt2", 9, weights=torch.bfloat16, max_points=16)
    double = scores_of("gpt2", 9, weights=torch.bfloat16, wide=True)
    truth = relative_error(found.scores, double.scores)
    assert truth / 2 < found.error[0] < 20 * truth
    assert not found.converged.all()


@FORECAST
def test_scores_multiplied_by_the_activation_do_not_cancel() -> None:
    """As in the released code: x, whose rounding is relative to itself, stands for (x - x')."""
    cancels = in_float32("gpt2", 200)
    found = in_float32("gpt2", 200, multiply_by="activation", tolerance=1e-5)
    double = in_float64("gpt2", 200, multiply_by="activation", tolerance=1e-6)
    truth = relative_error(found.scores, double.scores)
    assert truth < found.error[0] < 1e-5 < cancels.error[0]


@pytest.mark.parametrize("name", ["gemma3", "llama", "gpt2", "phi", "olmo2", "qwen3"])
def test_ordinary_facts_converge_at_the_default_tolerance(name: str) -> None:
    found = in_float32(name, 9)
    assert found.converged.all()
    assert found.error[0] <= 1e-3
