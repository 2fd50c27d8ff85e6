"""Models that are nearly what the engine takes: what they are, and the call that mends them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, weight_norm

import dkn_engine as dkn
from dkn_engine.analysis.experiments.evolvability.trainable import trainable_blocks
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer

FACT = dkn.Fact("a", "w5 w9 w11", "w13 w14")
DOWN = "model.layers.1.mlp.down_proj"


def llama() -> Any:
    return tiny("llama", torch.float32)


@pytest.fixture
def peft() -> Iterator[Any]:
    found = pytest.importorskip("peft")
    with warnings.catch_warnings():
        # peft asks the model for all its attributes, of which one is deprecated.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield found


def refused(model: Any) -> str:
    """The one line in which every verb refuses a model."""
    tokenizer, told = words_tokenizer(), set()
    for verb in (dkn.attribute, dkn.find_dkns, dkn.answer_probability):
        with pytest.raises(UnsupportedModelError) as raised:
            verb(model, tokenizer, [FACT])
        told.add(str(raised.value))
    assert len(told) == 1
    assert "\n" not in min(told)
    return min(told)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_prompt_tuning_is_named(peft: Any, kind: str) -> None:
    config = getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    told = refused(peft.get_peft_model(llama(), config))
    assert "expected one row of logits a token; found 11 for 8 tokens" in told
    assert "prompt tuning by peft" in told
    assert "use the base model" in told


def parametrized() -> Any:
    model = llama()
    parametrizations.weight_norm(model.get_submodule(DOWN))
    return model


def normed() -> Any:
    model = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(model.get_submodule(DOWN))
    return model


@pytest.mark.parametrize("make", [parametrized, normed])
def test_computed_weights_are_not_called_quantised(make: Any) -> None:
    """They are taken as what they compute, which is what the plain model has."""
    found, expected = (
        dkn.attribute(m, words_tokenizer(), [FACT]).scores for m in (make(), llama())
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_a_gguf_file_read_as_plain_numbers_is_no_quantised_model() -> None:
    """transformers leaves its note on the file in the configuration."""
    from transformers import GgufConfig

    model = llama()
    model.config.quantization_config = GgufConfig(gguf_file="model.gguf", dequantize=True)
    found, expected = (dkn.attribute(m, words_tokenizer(), [FACT]).scores for m in (model, llama()))
    np.testing.assert_array_equal(found, expected)


def test_an_adapters_folder_is_named(tmp_path: Path, peft: Any) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"])
    peft.get_peft_model(llama(), config).save_pretrained(tmp_path)
    with pytest.raises(dkn.UserError, match=r"an adapter of peft, not a model: merge it"):
        dkn.load_model(tmp_path)


def test_a_folders_bare_name_is_looked_at_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # fails at once
    for name, files, words in (
        ("ad", ["adapter_config.json"], "an adapter of peft, not a model: merge it"),
        ("empty", ["notes.txt"], "the folder holds no config.json"),
    ):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
        with pytest.raises(dkn.UserError, match=f"^model '{name}': .*{words}"):
            dkn.load_model(name)


def of_folder(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    words_tokenizer().save_pretrained(folder)
    return folder


def test_an_adapter_beside_the_weights_counts(tmp_path: Path, peft: Any) -> None:
    """transformers puts it into a model of its own class, which cannot merge."""
    folder, apart = of_folder(llama(), tmp_path / "model"), tmp_path / "apart"
    apart.mkdir()
    config = peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    peft.get_peft_model(llama(), config).save_pretrained(folder)
    model, _ = dkn.load_model(folder, "cpu")
    assert not hasattr(model, "merge_and_unload")
    found = dkn.attribute(model, words_tokenizer(), [FACT])
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).rename(apart / file)
    bare, _ = dkn.load_model(folder, "cpu")
    without = dkn.attribute(bare, words_tokenizer(), [FACT])
    merged = peft.PeftModel.from_pretrained(bare, apart).merge_and_unload()
    expected = dkn.attribute(merged, words_tokenizer(), [FACT])
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-6)
    assert np.abs(found.scores - without.scores).max() > 1e-3


@pytest.mark.parametrize("part", ["gate_proj", "up_proj"])
def test_weights_under_an_adapter_are_not_called_computed_anew(peft: Any, part: str) -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=[part]))
    words = r"an adapter of peft around it .* model = model.merge_and_unload\(\)"
    if part == "gate_proj":  # ``up`` is not scaled
        with (
            pytest.raises(UnsupportedModelError, match=words),
            dkn.intervene(model, [[0, 1]], on="input_and_output_weights"),
        ):
            pass
    for chosen in ([[0, 1]], "mlp"):
        with pytest.raises(UnsupportedModelError, match=words):
            trainable_blocks(model, find_layout(model), chosen)
    merged = model.merge_and_unload()
    with dkn.intervene(merged, [[0, 1]], on="input_and_output_weights"):
        pass


def test_mixed_adapters_are_as_others(peft: Any) -> None:
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.PeftMixedModel(llama(), config).eval()
    found = dkn.attribute(model, words_tokenizer(), [FACT])
    merged = model.merge_and_unload()
    expected = dkn.attribute(merged, words_tokenizer(), [FACT])
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-3, atol=1e-6)
