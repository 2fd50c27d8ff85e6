"""A model's tail is taken apart only where the parts give the model's own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.errors import BackendError
from dkn_engine.forward.contexts import build_contexts
from dkn_engine.forward.head import model_tail
from dkn_engine.forward.prefill import prefill
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout
from dkn_engine.ops.answer_probability import Head, Tail
from tests.support.tiny import FAMILIES, MASK_ID, VOCABULARY, sequences, tiny
from tests.support.values import normal

D = 24


def tail_of(model: Any) -> Tail:
    dtype, layout = next(model.parameters()).dtype, find_layout(model)
    clean = prefill(model, layout, build_contexts(sequences()[:1], torch.device("cpu")))
    sample = normal(6, D, dtype=dtype, seed=2)
    return model_tail(model, layout, sample, in_tuples=clean.in_tuples)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_is_taken_apart(name: str) -> None:
    model = tiny(name)
    hidden = normal(5, D, seed=1)
    with guest(model, grad=True):
        tail = tail_of(model)
        head = tail.head
        assert isinstance(head, Head), head
        x, y = (hidden.clone().requires_grad_(True) for _ in range(2))
        own, rebuilt = tail(x), head.logits(y)
        weights = normal(5, VOCABULARY, seed=3)
        gradients = torch.autograd.grad(own, x, weights), torch.autograd.grad(rebuilt, y, weights)
    assert own.shape == rebuilt.shape == (5, VOCABULARY)
    assert (own - rebuilt).abs().max() < 1e-12
    assert (gradients[0][0] - gradients[1][0]).abs().max() < 1e-12


def test_caps_scales_and_biases_are_found() -> None:
    heads = {name: tail_of(tiny(name)).head for name in ("gemma2", "granite", "phi", "llama")}
    found = {
        name: (head.softcap, head.scale, head.bias is not None)
        for name, head in heads.items()
        if isinstance(head, Head)
    }
    assert found == {
        "gemma2": (3.0, 1.0, False),
        "granite": (None, pytest.approx(1 / 3), False),
        "phi": (None, 1.0, True),
        "llama": (None, 1.0, False),
    }


def test_tied_and_untied_projections_are_the_models_own() -> None:
    for tied in (True, False):
        model = tiny("llama", tie_word_embeddings=tied)
        head = tail_of(model).head
        assert isinstance(head, Head)
        shared = head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        assert shared is tied
        assert head.weight.data_ptr() == model.lm_head.weight.data_ptr()


def test_looking_for_the_parts_leaves_the_model_as_it_was() -> None:
    model = tiny("gemma2")
    before = dict(model.named_modules())
    assert isinstance(tail_of(model).head, Head)
    after = dict(model.named_modules())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)


class Odd(nn.Module):
    """A projection that does more than project."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def with_logits(model: Any, change: Any) -> Any:
    """The model with a change to its logits that no configuration tells of."""
    forward = model.forward

    def changed(*args: Any, **kw: Any) -> Any:
        out = forward(*args, **kw)
        out.logits = change(out.logits)
        return out

    model.forward = changed
    return model


@pytest.mark.parametrize(
    "change",
    [lambda x: 9 * torch.tanh(x / 9), lambda x: 1.02 * x, lambda x: x + 0.1 * torch.sin(x)],
    ids=["cap", "scale", "wave"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_no_configuration_tells_of_is_seen_from_the_logits(
    change: Any, dtype: torch.dtype
) -> None:
    found = tail_of(with_logits(tiny("llama", dtype), change)).head
    assert isinstance(found, str)
    assert "do not give the model's own logits" in found


def test_a_projection_of_another_class_is_said() -> None:
    model = tiny("llama")
    model.lm_head = Odd(model.lm_head)
    assert tail_of(model).head == "expected a projection of class Linear; found Odd"


def test_a_forward_that_needs_all_logits_is_said() -> None:
    bias = torch.ones(VOCABULARY, dtype=torch.float64)
    head = tail_of(with_logits(tiny("llama"), lambda x: x @ torch.diag(bias))).head
    assert isinstance(head, str)
    assert "its forward fails without the projection" in head


def test_such_a_model_is_swept_by_its_own_tail_and_refused_to_kernels(kernel_device: str) -> None:
    def scale(logits: Tensor) -> Tensor:
        return 0.5 * logits

    model = with_logits(tiny("llama", torch.float32), scale).to(kernel_device)
    layout, some = find_layout(model), sequences()[:1]
    options: Any = {"quadrature": "riemann_left", "n_steps": 1}
    found, expected = (
        attribute_chunk(
            model, layout, some, AttributionConfig(backend=backend, **options), mask_id=MASK_ID
        )
        for backend in ("auto", "reference")
    )
    assert found.path == "sweep"
    largest = np.abs(expected.scores).max()
    assert np.abs(found.scores - expected.scores).max() <= 1e-5 * largest
    config = AttributionConfig(backend="triton", **options)
    with pytest.raises(BackendError, match="do not give the model's own logits"):
        attribute_chunk(model, layout, some, config, mask_id=MASK_ID)
