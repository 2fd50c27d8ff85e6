"""What a model around the decoder adds is in every pass, the masked baselines' included."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from dkn_engine.attribution import chunk
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.edits import suppress
from dkn_engine.models.layout import find_layout
from tests.support.attribution_runs import LEFT, fixed
from tests.support.brute_force_scores import BruteForce
from tests.support.tiny import FAMILIES, MASK_ID, redraw, relative_error, sequence, sequences, tiny

FULL_PASSES = "full forward passes"


def prefix_tuned() -> Any:
    """A tiny LLaMA behind four trained key and value positions, which peft's forward passes on."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model: Any = peft.get_peft_model(tiny("llama"), config)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt_encoder" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=noise))
    return model.double().eval()


class ScaledForCausalLM(transformers.LlamaForCausalLM):
    """Embeds tokens itself, which its inner decoder does not do when it is asked alone."""

    def forward(self, input_ids: Any = None, **more: Any) -> Any:
        return super().forward(inputs_embeds=3 * self.model.embed_tokens(input_ids), **more)


class MarkingForCausalLM(transformers.LlamaForCausalLM):
    """Treats the token that masks otherwise than the decoder does: clean passes do not show it."""

    def forward(self, input_ids: Any = None, **more: Any) -> Any:
        marks = 2.0 * (input_ids == MASK_ID).unsqueeze(-1)
        return super().forward(inputs_embeds=self.model.embed_tokens(input_ids) + marks, **more)


def embedding(kind: type[Any]) -> Any:
    model = kind(transformers.LlamaConfig(**FAMILIES["llama"].options))
    redraw(model)
    return model.double().eval()


OUTER: dict[str, Callable[[], Any]] = {
    "prefix tuning": prefix_tuned,
    "own embeddings": lambda: embedding(ScaledForCausalLM),
    "own mask": lambda: embedding(MarkingForCausalLM),
}


def brute_force(model: Any, inner: Any) -> BruteForce:
    oracle = BruteForce("llama", inner, "post")
    oracle.model = model  # the modules of the decoder, the forward of what is around it
    return oracle


@pytest.mark.parametrize("baseline", ["masked", "zero"])
@pytest.mark.parametrize("kind", OUTER)
def test_scores_are_those_of_the_whole_model(kind: str, baseline: Any) -> None:
    model = OUTER[kind]()
    inner = model.get_base_model() if kind == "prefix tuning" else model
    oracle = brute_force(model, inner)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*{FULL_PASSES}")
        found = attribute_chunk(
            model, find_layout(model), sequences(), fixed(baseline=baseline), mask_id=MASK_ID
        )
    for i, one in enumerate(sequences()):
        expected = oracle.scores(one, LEFT, baseline).mean(0)
        assert relative_error(found.scores[i], expected) < 1e-8


def test_the_warning_says_why_and_is_the_same_for_every_chunk() -> None:
    model, said = prefix_tuned(), []
    for n_prompt in (4, 9):
        with pytest.warns(UserWarning, match=FULL_PASSES) as caught:
            attribute_chunk(
                model, find_layout(model), [sequence(n_prompt, 1)], fixed(), mask_id=MASK_ID
            )
        said += [str(w.message) for w in caught if FULL_PASSES in str(w.message)]
    assert said == 2 * [said[0]]
    assert "positions in front of the prompt; in blocks, layer 0 takes 'past_key_values'" in said[0]


def test_a_masked_pass_that_is_not_the_models_is_not_believed() -> None:
    """Only blocks of several rows go wrong here, which the sweep's own clean rows never are."""
    model = tiny("llama")
    layout, config = find_layout(model), AttributionConfig(baseline="masked")
    expected = attribute_chunk(model, layout, sequences(), config, mask_id=MASK_ID)
    attention: Any = layout.layers[1].self_attn
    original = type(attention).forward

    def skewed(self: Any, hidden_states: Any, **more: Any) -> Any:
        out, weights = original(self, hidden_states, **more)
        name = self.config._attn_implementation_internal
        block = name == "dkn_engine_rows" and hidden_states.shape[1] > 2
        block &= not torch.is_grad_enabled()
        return (1.5 * out if block else out), weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(attention), "forward", skewed)
        patch.setattr(chunk, "prefixes_pay", lambda *_: True)  # not in so small a model
        found = attribute_chunk(model, layout, sequences(), config, mask_id=MASK_ID)
    assert (expected.path, found.path) == ("sweep", "blocks")
    assert np.abs(found.scores - expected.scores).max() < 2e-3 * np.abs(expected.scores).max()


def test_flattened_mlps_are_told_of_in_the_same_words_for_every_batch() -> None:
    """A warning that names a batch's shape would be shown again for each."""
    model, said = tiny("opt"), []
    for some in (sequences()[:1], sequences()):
        with pytest.warns(UserWarning, match=FULL_PASSES) as caught:
            Prompts(model, find_layout(model), some).outcomes([suppress([[0, 0]])])
        said += [str(w.message) for w in caught if FULL_PASSES in str(w.message)]
    assert len(set(said)) == 1
