"""Attribution of encoder-decoders: equal to plain loops over tokens, layers and path points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import FLOAT64, LEFT, fixed
from tests.support.brute_force_encoders import EncoderDecoderBruteForce
from tests.support.tiny import MASK_ID, relative_error
from tests.support.tiny_encoder_decoders import MODELS, asked, model_of


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_plain_loops(name: str, site: str, baseline: str) -> None:
    model = model_of(name)
    config = fixed(site=site, baseline=baseline)
    found = attribute_chunk(model, find_layout(model), asked(), config, mask_id=MASK_ID)
    assert found.path == "blocks"
    plain = EncoderDecoderBruteForce(name, model, site)
    for i, one in enumerate(asked()):
        assert found.probability[i] == pytest.approx(plain.probability(one), rel=FLOAT64)
        expected = plain.scores(one, LEFT, baseline).mean(0)
        assert relative_error(found.scores[i], expected) < FLOAT64


def test_scores_do_not_depend_on_what_else_is_in_the_chunk() -> None:
    """Prompts of other lengths are not padded beside one another in the encoder."""
    model = model_of("t5")
    layout = find_layout(model)
    together = attribute_chunk(model, layout, asked(), fixed(), mask_id=MASK_ID)
    for i, one in enumerate(asked()):
        alone = attribute_chunk(model, layout, [one], fixed(), mask_id=MASK_ID)
        assert relative_error(together.scores[i], alone.scores[0]) < FLOAT64


# Above a changed activation of T5's first form are kinks, which a rule of 64 points meets.
@pytest.mark.parametrize(
    ("name", "tolerance"), [(n, 1e-3 if n.startswith("t5") else 1e-6) for n in MODELS]
)
def test_scores_add_up_to_the_change(name: str, tolerance: float) -> None:
    """Completeness: to the tolerance, p at the activation minus p at the baseline."""
    model, one = model_of(name), asked()[0]
    config = AttributionConfig(tolerance=tolerance)
    found = attribute_chunk(model, find_layout(model), [one], config, mask_id=MASK_ID)
    assert found.converged.all()
    oracle = EncoderDecoderBruteForce(name, model, "post")
    (changes,) = oracle.change(one, "masked", "probability")
    # The tolerance is a share of the length of all layers' scores.
    allowed = 10 * tolerance * float(np.linalg.norm(found.scores[0]))
    for scores, change in zip(found.scores[0], changes.tolist(), strict=True):
        assert scores.sum() == pytest.approx(change, abs=allowed)


def test_the_encoder_reads_a_prompt_once_and_once_for_each_masked_copy() -> None:
    model, one = model_of("bart"), asked()[0]
    layout, read = find_layout(model), []
    attribute_chunk(model, layout, [one], fixed(baseline="zero"))  # a new model is tried first
    handle = model.get_encoder().register_forward_hook(
        lambda _module, args, kwargs, _out: read.append(kwargs["input_ids"].tolist()),
        with_kwargs=True,
    )
    attribute_chunk(model, layout, [one], fixed(baseline="masked"), mask_id=MASK_ID)
    Prompts(model, layout, [one]).probabilities([suppress([[0, 3], [2, 5]]), suppress([[1, 7]])])
    handle.remove()
    source = list(one.source)
    rows = [row for batch in read for row in batch if len(row) > 1]
    assert rows.count(source) == 2  # once for scores, once for edits
    copies = [row for row in rows if row != source]
    masked = [[*source[:j], MASK_ID, *source[j + 1 :]] for j in (0, 1, 3, 4)]
    assert sorted(copies) == sorted(masked)


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("t5")
    model.train()
    model.encoder.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    flags = [p.requires_grad for p in model.parameters()]
    attribute_chunk(model, find_layout(model), asked(), fixed(), mask_id=MASK_ID)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
