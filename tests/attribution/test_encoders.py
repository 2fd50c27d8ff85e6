"""Attribution of encoders: equal to plain loops over tokens, layers and path points."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dkn_engine.attribution.block_sweep import Blocks
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.patched_rows import SweepUnsupported
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import FLOAT64, LEFT, fixed
from tests.support.brute_force_encoders import EncoderBruteForce
from tests.support.tiny import MASK_ID, relative_error
from tests.support.tiny_encoders import (
    ENCODERS,
    left_to_right,
    masked,
    sentences,
    tiny_encoder,
)

# DeBERTa runs by full forwards, and says so once.
pytestmark = pytest.mark.filterwarnings("ignore:.*full forward passes")


CASES = [(name, site) for name in ENCODERS for site in ("post", "pre")]


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize(("name", "site"), CASES)
def test_scores_are_those_of_plain_loops(name: str, site: str, baseline: str) -> None:
    model = tiny_encoder(name)
    config = fixed(site=site, baseline=baseline)
    found = attribute_chunk(model, find_layout(model), sentences(), config, mask_id=MASK_ID)
    # Between DeBERTa's first two layers is a convolution, where it has one.
    assert found.path == ("general" if name == "deberta_v2" else "blocks")
    plain = EncoderBruteForce(name, model, site)
    for i, one in enumerate(sentences()):
        assert found.probability[i] == pytest.approx(plain.probability(one), rel=FLOAT64)
        expected = plain.scores(one, LEFT, baseline).mean(0)
        assert relative_error(found.scores[i], expected) < FLOAT64


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_tokens_predicted_from_left_to_right(name: str) -> None:
    model, some = tiny_encoder(name), [left_to_right(one) for one in sentences()]
    found = attribute_chunk(model, find_layout(model), some, fixed(), mask_id=MASK_ID)
    plain = EncoderBruteForce(name, model, "post")
    for i, one in enumerate(some):
        assert found.probability[i] == pytest.approx(plain.probability(one), rel=FLOAT64)
        assert relative_error(found.scores[i], plain.scores(one, LEFT).mean(0)) < FLOAT64
    apart = plain.scores(sentences()[0], LEFT).mean(0)
    assert relative_error(found.scores[0], apart) > 1e-3


def test_scores_do_not_depend_on_what_else_is_in_the_chunk() -> None:
    """Sentences of other lengths are not padded beside one another."""
    model = tiny_encoder("bert")
    together = attribute_chunk(model, find_layout(model), sentences(), fixed(), mask_id=MASK_ID)
    for i, one in enumerate(sentences()):
        alone = attribute_chunk(model, find_layout(model), [one], fixed(), mask_id=MASK_ID)
        assert relative_error(together.scores[i], alone.scores[0]) < FLOAT64


@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_each_sentence_is_said_to_have_taken_its_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one length go together; another length may not run in blocks."""
    model, own = tiny_encoder("bert"), Blocks.begin
    some = sentences()
    longest = max(len(one.ids) for one in some)

    def refuse(self: Any, points: Any) -> Any:
        if self.contexts.ids.shape[1] == longest:
            raise SweepUnsupported("too long")
        return own(self, points)

    monkeypatch.setattr(Blocks, "begin", refuse)
    config = fixed(baseline="zero")
    found = attribute_chunk(model, find_layout(model), some, config, mask_id=MASK_ID)
    expected = ["general" if len(one.ids) == longest else "blocks" for one in some]
    assert found.paths.tolist() == expected
    assert found.path == "general"


@pytest.mark.parametrize("name", ENCODERS)
def test_scores_add_up_to_the_change(name: str) -> None:
    """Completeness: to the tolerance, p at the activation minus p at the baseline."""
    model, one = tiny_encoder(name), masked(3, 1, 2)
    config = AttributionConfig(tolerance=1e-6)
    found = attribute_chunk(model, find_layout(model), [one], config, mask_id=MASK_ID)
    assert found.converged.all()
    (changes,) = EncoderBruteForce(name, model, "post").change(one, "masked", "probability")
    for scores, change in zip(found.scores[0], changes.tolist(), strict=True):
        assert scores.sum() == pytest.approx(change, abs=1e-5 * abs(change) + 1e-9)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_encoder("bert")
    model.train()
    model.bert.embeddings.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    flags = [p.requires_grad for p in model.parameters()]
    attribute_chunk(model, find_layout(model), sentences(), fixed(), mask_id=MASK_ID)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
