"""Every model of transformers with pictures or sounds, asked by text, and its row of the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import dkn_engine as dkn
from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.layout import find_layout
from tests.support.families import family
from tests.support.family_page import row
from tests.support.multimodal_families import multimodal, outcome, rows_of_the_page
from tests.support.words import text, words_tokenizer

# Widely used ones, and one of each way; the rest is marked slow.
QUICK = ("llava", "mistral3", "qwen2_5_vl", "llava_onevision", "paligemma", "blip-2", "mistral4")
ALLOWED = 1e-5  # as of decoders


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in multimodal()]
)
def test_a_model_does_what_its_row_says_and_equals_brute_force(kind: str) -> None:
    """``python -m tests.support.multimodal_families`` writes the rows anew."""
    found = outcome(kind)
    assert found.apart < ALLOWED
    assert dict(rows_of_the_page())[kind] == row(found)


def test_the_page_has_every_multimodal_model_once() -> None:
    assert sorted(kind for kind, _ in rows_of_the_page()) == sorted(multimodal())


def test_the_layers_are_those_that_read_the_text() -> None:
    """Of two stacks of as many layers, and with the tower of pictures in front."""
    model = family("llava", torch.float32, "LlavaForConditionalGeneration")
    tower = model.get_submodule("model.vision_tower").modules()
    stacks = [m for m in tower if isinstance(m, torch.nn.ModuleList)]
    assert [len(stack) for stack in stacks] == [3]
    layout = find_layout(model)
    layers = model.get_submodule("model.language_model.layers")
    assert [id(one) for one in layout.layers] == [id(one) for one in layers.children()]
    fact = dkn.Fact("a", text([5, 9, 11]), text([13, 14]))
    found = dkn.find_dkns(model, words_tokenizer(), [fact])
    assert found[0].status in {"ok", "not_known"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llava", "LlavaForConditionalGeneration"), ("gemma3", "Gemma3ForConditionalGeneration")],
)
def test_a_folder_is_loaded_with_its_pictures_part_and_asked(
    kind: str, name: str, tmp_path: Path
) -> None:
    model = family(kind, torch.float32, name)
    model.save_pretrained(tmp_path)  # type: ignore[operator]  # of transformers
    words_tokenizer().save_pretrained(tmp_path)
    loaded, tokenizer = dkn.load_model(tmp_path, device="cpu")
    assert type(loaded).__name__ == name
    fact = dkn.Fact("a", text([5, 9, 11]), text([13]))
    found = dkn.answer_probability(loaded, tokenizer, [fact])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 9, 11]])).logits[0, -1]
    assert found[0] == pytest.approx(float(torch.softmax(logits, -1)[13]), rel=1e-5)


def test_a_model_that_takes_no_text_alone_is_refused() -> None:
    model = family("blip-2", torch.float32, "Blip2ForConditionalGeneration")
    with pytest.raises(
        UnsupportedModelError, match=r"Blip2.*: expected a model that takes a text alone.*pixel_val"
    ):
        find_layout(model)


def test_streams_in_front_of_sequences_are_refused() -> None:
    model = family("gemma3n_text", torch.float32)
    fact = dkn.Fact("a", text([5, 9, 11]), text([13, 14]))
    words = r"Gemma3n.*: expected layers that read the residual stream by .*; found \[4, 2, "
    with pytest.raises(UnsupportedModelError, match=words):
        dkn.attribute(model, words_tokenizer(), [fact])
    with pytest.raises(UnsupportedModelError, match=words):
        dkn.answer_probability(model, words_tokenizer(), [fact], suppress=[[0, 1]])
