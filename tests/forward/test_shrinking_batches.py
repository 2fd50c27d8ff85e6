"""A device that runs out of memory gets smaller batches, and the same results come out."""

from __future__ import annotations

import functools
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.attribution.block_sweep import Blocks
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.sweep import Sweep
from dkn_engine.config import AttributionConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.layout import find_layout
from tests.support.tiny import MASK_ID, relative_error, sequences, tiny

WARNING = "out of memory: going on with half the rows"


def test_batches_cover_everything_once() -> None:
    seen: list[tuple[int, int]] = []
    assert in_batches(7, 3, lambda start, stop: seen.append((start, stop))) == 3
    assert seen == [(0, 3), (3, 6), (6, 7)]
    assert in_batches(0, 3, lambda start, stop: seen.append((start, stop))) == 3
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        ([0, 4, 8], [(0, 4), (4, 8), (8, 11)]),  # one piece fits at a time
        ([0, 2, 4, 9], [(0, 4), (4, 9), (9, 11)]),
        ([0, 8], [(0, 5), (5, 8), (8, 11)]),  # a piece that does not fit is cut
        ([], [(0, 5), (5, 10), (10, 11)]),
    ],
)
def test_batches_end_at_cuts(cuts: list[int], expected: list[tuple[int, int]]) -> None:
    seen: list[tuple[int, int]] = []
    assert in_batches(11, 5, lambda start, stop: seen.append((start, stop)), cuts) == 5
    assert seen == expected


def test_batch_is_halved_until_it_fits_and_stays_small() -> None:
    done: list[int] = []
    tried: list[int] = []

    def work(start: int, stop: int) -> None:
        tried.append(stop - start)
        if stop - start > 2:
            raise torch.OutOfMemoryError
        done.extend(range(start, stop))

    with pytest.warns(UserWarning, match=WARNING):
        assert in_batches(9, 8, work) == 2
    assert done == list(range(9))
    assert tried == [8, 4, 2, 2, 2, 2, 1]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    def work(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.warns(UserWarning, match=WARNING), pytest.raises(torch.OutOfMemoryError):
        in_batches(4, 2, work)


def limited(real: Any, most: int) -> Any:
    """A batch function that has memory for so many points."""

    def run(self: Any, points: Any, *more: Any) -> Any:
        if len(points) > most:
            raise torch.OutOfMemoryError
        return real(self, points, *more)

    return run


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        ("llama", Sweep, "_climb"),
        ("gptj", Blocks, "_climb"),
    ],
)
def test_attribution_out_of_memory_gives_the_same_scores(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: Any, method: str
) -> None:
    model = tiny(name)
    layout, some = find_layout(model), sequences()
    config = AttributionConfig(rows_per_batch=1000)
    expected = attribute_chunk(model, layout, some, config, mask_id=MASK_ID)
    monkeypatch.setattr(kind, method, limited(getattr(kind, method), 3))
    with pytest.warns(UserWarning, match=WARNING):
        found = attribute_chunk(model, layout, some, config, mask_id=MASK_ID)
    assert np.array_equal(found.n_points, expected.n_points)
    assert relative_error(found.scores, expected.scores) < 1e-9


def limit_positions(monkeypatch: pytest.MonkeyPatch, model: Any, most: int) -> None:
    """A device on which a decoder layer has memory for so many positions at once."""
    kind = type(find_layout(model).layers[0])
    real = kind.forward

    @functools.wraps(real)  # the engine reads the signature
    def forward(self: Any, hidden_states: Any, *args: Any, **more: Any) -> Any:
        if hidden_states.shape[:2].numel() > most:
            raise torch.OutOfMemoryError
        return real(self, hidden_states, *args, **more)

    monkeypatch.setattr(kind, "forward", forward)


@pytest.mark.parametrize("most", [9, 12, 30])  # the longest of the sequences has nine positions
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_every_pass_of_attribution_survives(
    monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    """Clean passes, masked baselines and paths, by rows and in blocks."""
    model = tiny(name)
    layout, config = find_layout(model), AttributionConfig(rows_per_batch=1000)
    expected = attribute_chunk(model, layout, sequences(), config, mask_id=MASK_ID)
    limit_positions(monkeypatch, model, most)
    with pytest.warns(UserWarning, match="out of memory"):
        found = attribute_chunk(model, layout, sequences(), config, mask_id=MASK_ID)
    assert np.array_equal(found.n_points, expected.n_points)
    assert found.path == expected.path
    # GPT-J turns its keys in float32.
    assert relative_error(found.scores, expected.scores) < (1e-9 if name == "llama" else 1e-6)
    np.testing.assert_allclose(found.probability, expected.probability, rtol=1e-6)


@pytest.mark.parametrize("most", [9, 12, 30])
@pytest.mark.parametrize("positions", ["answer", "all"])
def test_prompts_survive(monkeypatch: pytest.MonkeyPatch, positions: str, most: int) -> None:
    model = tiny("llama")
    layout = find_layout(model)
    edits = [suppress(np.array([[0, i], [2, i]], np.int32)) for i in range(8)]
    expected = Prompts(model, layout, sequences(), positions=positions).probabilities(edits)
    limit_positions(monkeypatch, model, most)
    with pytest.warns(UserWarning, match="out of memory") if most < 30 else nullcontext():
        prompts = Prompts(model, layout, sequences(), positions=positions)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "out of memory")
        found = prompts.probabilities(edits)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:out of memory")
def test_a_model_that_does_not_fit_one_prompt_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    limit_positions(monkeypatch, model, 1)
    layout, config = find_layout(model), AttributionConfig()
    with pytest.raises(torch.OutOfMemoryError):
        attribute_chunk(model, layout, sequences(), config, mask_id=MASK_ID)
    with pytest.raises(torch.OutOfMemoryError):
        Prompts(model, layout, sequences())
    assert all(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"
