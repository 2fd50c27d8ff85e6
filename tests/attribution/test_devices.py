"""Tensors are made where the model is: a second device of another kind shows what is not.

Everything runs on the CPU, with ``meta`` as the default of what names no device. A tensor that does
not say where it belongs then has no values, and the next operation that needs them fails.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig, Config, FilterConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.models.layout import find_layout
from tests.support.tiny import MASK_ID, sequences, tiny
from tests.support.words import text, words_tokenizer


@pytest.mark.parametrize(
    ("name", "site", "baseline"),
    [
        ("llama", "post", "masked"),
        ("llama", "pre", "zero"),
        ("gpt2", "post", "zero"),
        ("gpt2", "pre", "masked"),
        ("gemma3", "post", "masked"),
        ("gemma3", "pre", "zero"),
        ("opt", "post", "zero"),
        ("opt", "pre", "masked"),
    ],
)
def test_attribution(name: str, site: Any, baseline: Any) -> None:
    """Each pair of model, site and baseline: a path begins where it begins at either site.

    Few points are allowed, but more than the first ones, except that GPT-2 needs no more.
    """
    model = tiny(name)
    config = AttributionConfig(site=site, baseline=baseline, max_points=40)
    layout = find_layout(model)
    expected = attribute_chunk(model, layout, sequences(), config, mask_id=MASK_ID)
    model = tiny(name)  # nothing is known of it
    layout = find_layout(model)
    some = sequences()
    with torch.device("meta"):
        found = attribute_chunk(model, layout, some, config, mask_id=MASK_ID)
    assert found.path == expected.path
    assert name == "gpt2" or expected.n_points[1].max() > 4  # of an answer of one token
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.filterwarnings("ignore:.*full forward passes")
@pytest.mark.parametrize("positions", ["answer", "answer_all", "all"])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_edited_prompts(name: str, positions: str) -> None:
    model = tiny(name)
    edits = [suppress(np.array([[0, i], [2, i]], np.int32)) for i in range(3)]
    some = sequences()
    expected = Prompts(model, find_layout(model), some, positions=positions).outcomes(edits)
    with torch.device("meta"):
        prompts = Prompts(model, find_layout(model), some, positions=positions)
        found = prompts.outcomes(edits)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_whole_way() -> None:
    model = tiny("llama", torch.float32)
    config = Config(filter=FilterConfig(min_probability=0.0, require_rank_1=False, n_random=2))
    facts = [
        dkn.Fact(f"f{i}", text(s.ids[: s.n_prompt]), text(s.targets[:1]))
        for i, s in enumerate(sequences())
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = dkn.find_dkns(model, words_tokenizer(), facts, config)
        with torch.device("meta"):
            found = dkn.find_dkns(model, words_tokenizer(), facts, config)
    assert {r.status for r in found} == {"ok"}
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.subset_probabilities, other.subset_probabilities)
