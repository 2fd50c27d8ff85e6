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


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "opt"])
def test_attribution(name: str, site: Any, baseline: Any) -> None:
    model, config = tiny(name), AttributionConfig(site=site, baseline=baseline)
    layout = find_layout(model)
    expected = attribute_chunk(model, layout, sequences(), config, mask_id=MASK_ID)
    model = tiny(name)  # nothing is known of it
    layout = find_layout(model)
    some = sequences()
    with torch.device("meta"):
        found = attribute_chunk(model, layout, some, config, mask_id=MASK_ID)
    assert found.path == expected.path
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
