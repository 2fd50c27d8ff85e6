"""A run whose attribution starts from given activations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dkn_engine as dkn
from dkn_engine.config import AttributionConfig
from tests.run.test_pipeline import CONFIG, assert_equal, facts, model
from tests.support.tiny import N_LAYERS, WIDTH
from tests.support.words import words_tokenizer

__all__ = ["model"]  # a fixture
GIVEN = dataclasses.replace(CONFIG, attribution=AttributionConfig(baseline="given"))
ZERO = dataclasses.replace(CONFIG, attribution=AttributionConfig(baseline="zero"))
NONE = np.zeros((N_LAYERS, WIDTH), np.float32)


def find(model: Any, config: dkn.Config = GIVEN, out: Any = None, **more: Any) -> dkn.Results:
    return dkn.find_dkns(model, words_tokenizer(), facts(model), config, out, **more)


def test_given_zeros_are_the_zero_baseline(model: Any) -> None:
    found, expected = find(model, baselines=NONE), find(model, ZERO)
    assert_equal(list(found), list(expected))
    assert any(len(r.neurons) for r in found)


def test_each_fact_has_its_own_in_chunks_of_other_order(model: Any, tmp_path: Path) -> None:
    """Scores are those that ``attribute`` gives each fact with its baseline alone."""
    rng = np.random.default_rng(3)
    some = facts(model)
    given = 0.3 * rng.standard_normal((len(some), N_LAYERS, WIDTH), np.float32)
    found = find(model, baselines=given)
    assert [len(r.neurons) for r in found] != [len(r.neurons) for r in find(model, ZERO)]
    for fact, row, result in zip(some, given, found, strict=True):
        alone = dkn.attribute(
            model, words_tokenizer(), fact, GIVEN.attribution, baselines=row
        ).scores[0]
        assert len(result.neurons)
        layers, indices = result.neurons.T
        # Each is within the tolerance, a share of the fact's scores, of the exact ones.
        bound = 2 * GIVEN.attribution.tolerance * float(np.linalg.norm(alone))
        assert np.abs(result.scores - alone[layers, indices]).max() <= bound
    assert_equal(list(find(model, out=tmp_path, baselines=given)), list(found))


def test_a_directory_is_continued_with_the_same_baselines_alone(model: Any, tmp_path: Path) -> None:
    first = find(model, out=tmp_path / "run", baselines=NONE)
    assert_equal(list(find(model, out=tmp_path / "run", baselines=NONE)), list(first))
    with pytest.raises(dkn.RunDirectoryError, match="another baselines: its digest was"):
        find(model, out=tmp_path / "run", baselines=NONE + 1)


@pytest.mark.parametrize(
    ("config", "baselines", "message"),
    [
        (GIVEN, None, "baseline must be 'masked' or 'zero' for DKNs; got 'given'"),
        (ZERO, NONE, "only then; got baseline='zero' and baselines set"),
        (GIVEN, NONE[:-1], r"baselines must be real \[\d+, \d+\]"),
        (GIVEN, NONE.astype(int), "got int64"),
        (GIVEN, np.stack([NONE] * 4), "a row for every fact; got 4 rows and 5 facts"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: Any, config: dkn.Config, baselines: Any, message: str
) -> None:
    with pytest.raises(dkn.UserError, match=message):
        find(model, config, baselines=baselines)
