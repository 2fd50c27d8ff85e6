"""captum's own ``LayerIntegratedGradients`` and ``dkn.attribute`` where both mean the same.

captum moves every position along the path, from activations at other tokens: with a prompt of one
token, and that one masked, there is no other position, and its baseline is the masked one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor

import dkn_engine as dkn
from tests.support.tiny import FAMILIES, MASK_ID, N_LAYERS, down_of, relative_error, tiny
from tests.support.words import text, words_tokenizer

TOKEN, ANSWER = 9, 23
# captum rounds the weights of its rules to float32, half an eps each, and terms of both signs may
# leave a sum ten times smaller than they are; some families round to float32 inside, too.
CAPTUM = 5 * float(torch.finfo(torch.float32).eps)
ROUNDED = 10 * CAPTUM
METHODS = {
    "gausslegendre": "gauss_legendre",
    "riemann_left": "riemann_left",
    "riemann_middle": "riemann_middle",
    "riemann_right": "riemann_right",
}


def by_captum(name: str, model: Any, method: str, n_steps: int) -> Tensor:
    """``[L, F]``, layer by layer."""

    def p(ids: Tensor) -> Tensor:
        return torch.softmax(model(input_ids=ids, use_cache=False).logits[:, -1], dim=-1)

    rows = []
    for layer in range(N_LAYERS):
        found = LayerIntegratedGradients(p, down_of(name, model, layer)).attribute(
            torch.tensor([[TOKEN]]),
            baselines=torch.tensor([[MASK_ID]]),
            target=ANSWER,
            n_steps=n_steps,
            method=method,
            attribute_to_layer_input=True,
        )
        found = found[0] if isinstance(found, tuple) else found
        rows.append(found.reshape(-1).detach())
    return torch.stack(rows)


# Without a batch axis (OPT) captum makes one of its steps.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "opt"])
@pytest.mark.filterwarnings("ignore:.*full forward passes")
def test_scores_are_captums(name: str) -> None:
    model = tiny(name)
    config = dkn.AttributionConfig(quadrature="gauss_legendre", n_steps=5)
    found = attributed(model, config)
    assert relative_error(found, by_captum(name, model, "gausslegendre", 5)) < ROUNDED


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_is_captums(method: str) -> None:
    model, rule = tiny("gpt2"), METHODS[method]
    config = dkn.AttributionConfig(quadrature=rule, n_steps=5)  # type: ignore[arg-type]
    assert relative_error(attributed(model, config), by_captum("gpt2", model, method, 5)) < CAPTUM


def attributed(model: Any, config: dkn.AttributionConfig) -> Any:
    fact = dkn.Fact("a", text([TOKEN]), text([ANSWER]))
    return dkn.attribute(model, words_tokenizer(), [fact], config).scores[0]


def test_the_class_that_is_gone_says_what_to_use() -> None:
    from dkn_engine import compat

    with pytest.raises(ImportError, match=r"use captum\.attr\..*, or dkn_engine\.attribute"):
        from dkn_engine.compat import LayerIntegratedGradients  # noqa: F401
    assert not hasattr(compat, "another_name")
