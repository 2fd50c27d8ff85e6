"""What is another run: everything about model and tokenizer that changes its numbers."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dkn_engine as dkn
from dkn_engine.errors import RunDirectoryError
from dkn_engine.models.fingerprint import identity_of
from dkn_engine.store import merge, read_manifest
from dkn_engine.store.plan import Shard
from tests.support.tiny import FAMILIES, ODD_NORMS, norm_of, tiny
from tests.support.words import words_tokenizer

FACTS = [dkn.Fact(f"f{i}", f"w{i + 4} w9 w{i + 11}", f"w{i + 13}") for i in range(3)]
CONFIG = dkn.Config(filter=dkn.FilterConfig(min_probability=0.0, n_random=1), facts_per_chunk=1)


def model() -> Any:
    return tiny("llama", torch.float32)


def find(out: Path, guest: Any, tokenizer: Any, **options: Any) -> dkn.Results:
    return dkn.find_dkns(guest, tokenizer, FACTS, CONFIG, out, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("identity") / "run"
    find(out, model(), words_tokenizer())
    return out


# The tokenizer


def with_bos() -> Any:
    return words_tokenizer(bos=True)


def with_another_mask() -> Any:
    tokenizer = words_tokenizer()
    tokenizer.mask_token = "w3"
    return tokenizer


def with_a_word_more() -> Any:
    tokenizer = words_tokenizer()
    tokenizer.add_tokens(["Berlin"])
    return tokenizer


def of_lower_case() -> Any:
    from tokenizers import normalizers

    tokenizer = words_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "w5")
    return tokenizer


TOKENIZERS = {
    "bos": (with_bos, r"tokenizer: its front was \[\], is now \[1\]"),
    "mask": (with_another_mask, "tokenizer: its mask was 60, is now 3"),
    "a word more": (with_a_word_more, "tokenizer: its n_tokens was 61, is now 62"),
    "other ids": (of_lower_case, "tokenizer: its digest was"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_run_is_not_continued_with_another_tokenizer(run: Path, case: str) -> None:
    make, message = TOKENIZERS[case]
    with pytest.raises(RunDirectoryError, match=message) as raised:
        find(run, model(), make())
    assert "\n" not in str(raised.value)


def test_the_same_tokenizer_made_again_continues(run: Path) -> None:
    """The token for padding is never used."""
    tokenizer = words_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = "{{ messages }}"
    assert len(find(run, model(), tokenizer)) == len(FACTS)


def test_shards_of_another_tokenizer_are_not_merged(tmp_path: Path) -> None:
    for i, tokenizer in enumerate([words_tokenizer(), with_another_mask()]):
        find(tmp_path / str(i), model(), tokenizer, shard=Shard(i, 2))
    with pytest.raises(RunDirectoryError, match="tokenizer: its mask"):
        merge(tmp_path / "whole", [tmp_path / "0", tmp_path / "1"])


# The model


def of_one_weight(guest: Any) -> None:
    """Which a fingerprint of some of the weights does not see."""
    guest.model.layers[1].mlp.down_proj.weight.data[3, 5] += 1e-3


def of_rows_swapped(guest: Any) -> None:
    """A permutation, which keeps all sums."""
    weight = guest.model.layers[1].mlp.down_proj.weight.data
    weight[[3, 4]] = weight[[4, 3]]


def of_activation(guest: Any) -> None:
    guest.model.layers[1].mlp.act_fn = nn.ReLU()


def of_attention_scale(guest: Any) -> None:
    guest.model.layers[1].self_attn.scaling *= 2


def of_epsilon(guest: Any) -> None:
    norm_of("llama", guest, 1).variance_epsilon = 0.5


def of_rope_scale(guest: Any) -> None:
    guest.model.rotary_emb.attention_scaling = 1.5


def of_rope_dtype(guest: Any) -> None:
    guest.model.rotary_emb.to(torch.bfloat16)


def of_buffer(guest: Any) -> None:
    guest.model.register_buffer("steering", torch.ones(24))


def of_own_forward(guest: Any) -> None:
    mlp = guest.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: 2 * forward(x)


def of_hook(guest: Any) -> None:
    guest.model.layers[1].register_forward_hook(lambda _m, _a, y: y + 1)


def of_attention(guest: Any) -> None:
    guest.set_attn_implementation("eager")


CHANGES: tuple[tuple[Callable[[Any], None], str], ...] = (
    (of_one_weight, "weights"),
    (of_rows_swapped, "weights"),
    (of_activation, "modules"),
    (of_attention_scale, "modules"),
    (of_epsilon, "modules"),
    (of_rope_scale, "modules"),
    (of_rope_dtype, "buffers"),
    (of_buffer, "buffers"),
    (of_own_forward, "modules"),
    (of_hook, "hooks"),
    (of_attention, "attention"),
)


@pytest.mark.parametrize(("change", "trait"), CHANGES, ids=lambda x: getattr(x, "__name__", x))
def test_every_change_of_the_model_is_a_trait(change: Any, trait: str) -> None:
    tokenizer, guest = words_tokenizer(), model()
    before = identity_of(guest, tokenizer).traits
    change(guest)
    after = identity_of(guest, tokenizer).traits
    assert before["tokenizer"] == after["tokenizer"]
    assert {k for k, v in before["model"].items() if after["model"][k] != v} == {trait}


def test_a_run_is_not_continued_with_a_changed_model(run: Path) -> None:
    guest = model()
    of_attention_scale(guest)
    with pytest.raises(RunDirectoryError, match="another model: its modules was"):
        find(run, guest, words_tokenizer())


def test_other_hooks_are_told_in_a_warning(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are known by their names only, and many only look on."""
    guest = model()
    of_hook(guest)
    with caplog.at_level(logging.WARNING):
        assert len(find(run, guest, words_tokenizer())) == len(FACTS)
    assert "hooks were [], are now ['model.layers.1: of_hook.<locals>.<lambda>']" in caplog.text


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # in peft
def test_the_state_of_adapters_counts() -> None:
    """Their weights are there in every state; which are added to the model's is not in them."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    guest = peft.get_peft_model(model(), config)
    guest.add_adapter("other", config)
    found = [identity_of(guest, words_tokenizer()).traits["model"]["modules"]]
    guest.set_adapter("other")
    found.append(identity_of(guest, words_tokenizer()).traits["model"]["modules"])
    with guest.disable_adapter():
        found.append(identity_of(guest, words_tokenizer()).traits["model"]["modules"])
    for module in guest.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["other"] *= 2
    found.append(identity_of(guest, words_tokenizer()).traits["model"]["modules"])
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", FAMILIES | ODD_NORMS)
@pytest.mark.filterwarnings("ignore:.*full forward passes:UserWarning")
def test_the_same_model_made_again_and_used_is_the_same(name: str) -> None:
    guest, tokenizer = tiny(name, torch.float32), words_tokenizer()
    first = identity_of(guest, tokenizer)
    dkn.answer_probability(guest, tokenizer, FACTS[:1])
    guest(input_ids=torch.arange(3, 9)[None], output_hidden_states=True)
    guest.activation_checkpointing_enable()
    guest.train()
    assert identity_of(guest, tokenizer) == first
    assert identity_of(tiny(name, torch.float32), tokenizer) == first


# Older runs


def test_an_older_run_is_read_and_continued_with_a_warning(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    manifest = read_manifest(old)
    del manifest["traits"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    expected = dkn.read_results(run)
    assert [r.fact_id for r in dkn.read_results(old)] == [r.fact_id for r in expected]
    with caplog.at_level(logging.WARNING):
        found = find(old, model(), words_tokenizer())
    assert "older version" in caplog.text
    assert "tokenizer" in caplog.text
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.neurons, other.neurons)
    assert "traits" not in read_manifest(old)
