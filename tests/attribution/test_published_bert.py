"""The published procedures in BERT's mode, restated: Dai et al.'s, and EleutherAI's.

Both scale the output of a layer's ``intermediate`` part at the mask from nothing up to what it is,
a batch entry a point; sum the gradients of the answer's probability; and multiply by the output.
Dai et al. (arXiv 2104.08696, equation 3) begin at zero and leave the full activation out, 20
points; EleutherAI's ``knowledge-neurons`` has both ends among as many points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dkn_engine as dkn
from tests.support.tiny import WIDTH
from tests.support.tiny_encoders import tiny_encoder
from tests.support.words import words_tokenizer

N_STEPS = 20
FACTS = [
    dkn.Fact("middle", "w5 w9 [MASK] w7", "w11"),
    dkn.Fact("begin", "[MASK] w8 w20", "w31"),
    dkn.Fact("end", "w8 w20 w3 w45 [MASK]", "w6"),
]
LEFT = torch.arange(N_STEPS, dtype=torch.float64) / N_STEPS
BOTH_ENDS = torch.linspace(0, 1, N_STEPS, dtype=torch.float64)


def published(model: Any, tokenizer: Any, fact: dkn.Fact, alphas: Tensor) -> np.ndarray:
    """``[L, F]``, a layer at a time, all points in one batch."""
    ids = tokenizer(fact.prompt.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
    input_ids, target = ids["input_ids"], tokenizer.convert_tokens_to_ids(fact.answer)
    at = int((input_ids[0] == tokenizer.mask_token_id).nonzero())
    rows = []
    for layer in model.bert.encoder.layer:
        seen: list[Tensor] = []
        handle = layer.intermediate.register_forward_hook(
            lambda _m, _a, output, seen=seen: seen.append(output[0, at].detach())
        )
        model(input_ids=input_ids)
        handle.remove()
        points = (alphas[:, None] * seen[0]).requires_grad_(True)

        def scaled(_m: Any, _a: Any, output: Tensor, points: Tensor = points) -> Tensor:
            output = output.clone()
            output[:, at] = points
            return output

        handle = layer.intermediate.register_forward_hook(scaled)
        logits = model(input_ids=input_ids.expand(len(alphas), -1)).logits[:, at]
        handle.remove()
        p = logits.softmax(-1)[:, target]
        (gradients,) = torch.autograd.grad(p.sum(), points)
        rows.append((gradients.sum(0) / len(alphas) * seen[0]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize(("rule", "alphas"), [("riemann_left", LEFT), ("linspace", BOTH_ENDS)])
def test_scores_are_the_published_ones(rule: Any, alphas: Tensor) -> None:
    model, tokenizer = tiny_encoder("bert"), words_tokenizer(ends=True)
    config = dkn.AttributionConfig(baseline="zero", quadrature=rule, n_steps=N_STEPS)
    found = dkn.attribute(model, tokenizer, FACTS, config)
    for scores, fact in zip(found.scores, FACTS, strict=True):
        expected = published(model, tokenizer, fact, alphas)
        assert expected.shape == (3, WIDTH)
        np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=1e-6 * expected.max())


def test_the_two_rules_differ() -> None:
    model, tokenizer = tiny_encoder("bert"), words_tokenizer(ends=True)
    left, both = (published(model, tokenizer, FACTS[0], alphas) for alphas in (LEFT, BOTH_ENDS))
    assert np.abs(left - both).max() > 1e-3 * np.abs(both).max()
