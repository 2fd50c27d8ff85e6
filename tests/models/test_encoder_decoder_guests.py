"""Encoder-decoders that are adapted or offloaded, and their norms: as the model's own passes."""

from __future__ import annotations

from typing import Any

import accelerate
import peft
import pytest
import torch

from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.models.layout import find_layout
from tests.support.plain_passes import brute_force, suppression
from tests.support.seq2seq_families import ASKED, encoder_decoder
from tests.support.tiny import relative_error

# Both sides add the same float64 numbers in another order.
ALLOWED = 1e-12
CONFIG = AttributionConfig(baseline="zero", quadrature="riemann_left", n_steps=3)
LORA = {"t5": ["wo", "q"], "bart": ["fc2", "q_proj"]}


def adapted(kind: str, how: str) -> Any:
    """With weights that an adapter does not begin with, so that it changes the model."""
    model: Any = encoder_decoder(kind)
    if how == "offloaded":
        return accelerate.cpu_offload(model, torch.device("cpu"))
    task: Any = {"task_type": "SEQ_2_SEQ_LM"}
    options: Any = {
        "lora": lambda: peft.LoraConfig(target_modules=LORA[kind], init_lora_weights=False, **task),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **task),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **task),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(model, options[how]()).double().eval()


# Prefixes are in a cache that blocks do not have.
@pytest.mark.filterwarnings("ignore:.*using full forward passes")
@pytest.mark.filterwarnings("ignore:.*are offloaded")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # by peft
@pytest.mark.parametrize("how", ["lora", "prompt", "prefix", "offloaded"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_scores_and_suppressions_are_those_of_brute_force(kind: str, how: str) -> None:
    model = adapted(kind, how)
    layout = find_layout(model)
    found = attribute_chunk(model, layout, ASKED, CONFIG)
    assert found.path == ("general" if how == "prefix" else "blocks")
    for scores, one in zip(found.scores, ASKED, strict=True):
        assert relative_error(scores, brute_force(model, layout, one)) < ALLOWED
    assert suppression(model, layout, ASKED) < ALLOWED


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("t5", "decoder.block.1.layer.2.layer_norm"),
        ("bart", "model.decoder.layers.1.encoder_attn_layer_norm"),  # behind that attention
        ("mbart", "model.decoder.layers.1.final_layer_norm"),
    ],
)
def test_the_norm_in_front_of_a_decoders_mlp(kind: str, norm: str) -> None:
    model = encoder_decoder(kind)
    weight: Any = model.get_submodule(norm).weight
    torch.testing.assert_close(find_layout(model).norm_gain(1), weight, rtol=1e-5, atol=1e-6)
