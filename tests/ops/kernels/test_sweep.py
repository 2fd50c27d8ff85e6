"""The whole sweep on kernels: every one is launched, and the scores are the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.models.layout import find_layout
from tests.support.tiny import MASK_ID, sequences, tiny

ALWAYS = {
    "prefix_attention.forward_kernel",
    "prefix_attention.backward_kernel",
    "answer_probability.project_kernel",
    "answer_probability.collect_kernel",
}
OF_SITE = {
    "post": {"ig_accumulate.sum_kernel", "ig_accumulate.project_kernel"},
    "pre": {"path_activation.path_activation_kernel", "ig_accumulate.pre_kernel"},
}
# Grouped queries and a gate; Conv1D and gelu's tanh form; both caps; scaled logits.
SOME = sequences()[:2]  # answers of two tokens and of one
CASES = [
    ("llama", "pre"),
    ("llama", "post"),
    ("gpt2", "pre"),
    ("gemma2", "post"),
    ("granite", "pre"),
]


def two_layers(name: str, dtype: torch.dtype, device: str) -> Any:
    """The tiny model with two layers, and with two heads of queries for each of keys.

    Attention, MLP and head run above the first layer, and the head alone above the second; more of
    either are more launches of the same kernels, and the interpreter takes its time for each.
    """
    changes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    if name != "gpt2":  # whose queries have keys of their own
        changes["num_key_value_heads"] = 1
    return tiny(name, dtype, **changes).to(device)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which kernels have been launched."""
    from dkn_engine.ops._triton import blocks

    seen: set[str] = set()
    launch = blocks.launch

    def recorded(kernel: Any, *args: Any, **options: Any) -> None:
        seen.add(f"{kernel.fn.__module__.split('.')[-2]}.{kernel.fn.__name__}")
        launch(kernel, *args, **options)

    monkeypatch.setattr(blocks, "launch", recorded)
    return seen


@pytest.mark.parametrize(("name", "site"), CASES)
def test_the_sweep_on_kernels_equals_the_reference(
    name: str, site: Any, kernel_device: str, launched: set[str]
) -> None:
    model = two_layers(name, torch.float32, kernel_device)
    layout = find_layout(model)
    found, expected = (
        attribute_chunk(
            model,
            layout,
            SOME,
            AttributionConfig(site=site, quadrature="gauss_legendre", n_steps=2, backend=backend),
            mask_id=MASK_ID,
        )
        for backend in ("triton", "reference")
    )
    assert found.path == expected.path == "sweep"
    assert launched == ALWAYS | OF_SITE[site]
    assert found.scores.shape == expected.scores.shape
    # What DESIGN allows between batchings: 1e-5 of a sequence's largest score.
    largest = np.abs(expected.scores).max((1, 2), keepdims=True)
    assert (np.abs(found.scores - expected.scores) <= 1e-5 * largest).all()
    assert np.abs(found.convergence_delta - expected.convergence_delta).max() <= 1e-6


def test_adaptive_points_on_kernels_equal_the_reference(
    kernel_device: str, launched: set[str]
) -> None:
    """Ragged panels, and the free end point, whose gradients come by other rows."""
    model = two_layers("llama", torch.float32, kernel_device)
    found, expected = (
        attribute_chunk(
            model,
            find_layout(model),
            SOME,
            AttributionConfig(baseline="zero", tolerance=4e-2, backend=backend),
        )
        for backend in ("triton", "reference")
    )
    assert launched == ALWAYS | OF_SITE["post"]
    assert (found.n_points == expected.n_points).all()
    assert len(set(found.n_points.flatten().tolist())) > 1  # ragged
    largest = np.abs(expected.scores).max((1, 2), keepdims=True)
    assert (np.abs(found.scores - expected.scores) <= 1e-5 * largest).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sweeps_are_no_worse_than_the_reference(
    dtype: torch.dtype, kernel_device: str
) -> None:
    """Both against the same weights in float32."""
    model = two_layers("llama", dtype, kernel_device)
    layout = find_layout(model)
    config: dict[str, Any] = {"quadrature": "gauss_legendre", "n_steps": 2, "baseline": "zero"}
    scores = {
        backend: attribute_chunk(
            model, layout, SOME, AttributionConfig(backend=backend, **config)
        ).scores
        for backend in ("triton", "reference")
    }
    wide = model.float()
    exact = attribute_chunk(
        wide, find_layout(wide), SOME, AttributionConfig(backend="reference", **config)
    ).scores
    errors = {k: np.linalg.norm(v - exact) for k, v in scores.items()}
    assert errors["triton"] <= 2 * errors["reference"]
    assert errors["reference"] > 0
