"""The family of small models: facts, tokenizer, neuron dropout, training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from benchmarks.science.model_family import (
    Training,
    made_up_facts,
    neuron_dropout,
    train,
    trained,
    words_tokenizer,
)


def test_facts_are_made_by_seed_and_fit_the_tokenizer() -> None:
    facts = made_up_facts()
    assert len(facts) == len({f.id for f in facts}) == 200
    assert facts == made_up_facts()
    assert facts != made_up_facts(seed=1)
    tokenizer = words_tokenizer(facts)
    for fact in facts:
        prompts = [tokenizer(p)["input_ids"] for p in (fact.prompt, *fact.paraphrases)]
        assert [len(ids) for ids in prompts] == [5, 5]
        assert tokenizer.unk_token_id not in [*prompts[0], *prompts[1]]
        assert len(tokenizer(fact.answer)["input_ids"]) == 1
    assert tokenizer.mask_token_id is not None


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_small_model_learns_its_facts_the_same_each_time(tmp_path: Path, dropout: float) -> None:
    facts = made_up_facts()[:20]
    settings = Training(2, 32, dropout)
    before = torch.get_rng_state()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(settings, facts, tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("a", "b")]
    assert weights[0] == weights[1]
    said = json.loads((tmp_path / "a" / "training.json").read_text())
    assert said["known"] >= 0.95
    assert said["probability"] >= 0.9
    model, tokenizer = dkn.load_model(tmp_path / "a", device="cpu")
    known = dkn.answer_probability(model, tokenizer, facts)
    assert (known > 0.5).mean() >= 0.9


def test_training_that_does_not_succeed_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2x32: not known after 1 steps"):
        train(Training(2, 32, most_steps=1), made_up_facts()[:20], tmp_path)


def test_models_are_kept_by_their_settings(tmp_path: Path, monkeypatch: Any) -> None:
    made = []

    def note(settings: Training, facts: Any, folder: Path) -> None:
        made.append(settings)
        (folder / "model").write_text("x")

    monkeypatch.setattr("benchmarks.science.model_family.train", note)
    facts, settings = made_up_facts()[:3], Training(2, 32)
    folder = trained(settings, facts, tmp_path)
    assert trained(settings, facts, tmp_path) == folder
    assert trained(dataclasses.replace(settings, seed=1), facts, tmp_path) != folder
    assert trained(settings, facts[:2], tmp_path) != folder
    assert len(made) == 3


def test_neuron_dropout_takes_whole_neurons_of_a_sequence() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=32, n_layer=2, n_head=1)).eval()
    inputs: list[torch.Tensor] = []
    ids = torch.randint(20, (6, 4))
    clean = model(ids).logits
    with neuron_dropout(model, 0.25):
        # Registered behind the dropout, so it sees what is left.
        handle = model.transformer.h[1].mlp.c_proj.register_forward_pre_hook(
            lambda _, args: inputs.append(args[0].detach())
        )
        model(ids)
        handle.remove()
    gone = inputs[0] == 0
    assert (gone == gone[:, :1]).all()  # the same at every position
    assert not (gone == gone[:1]).all()  # others in other sequences
    n = gone[:, 0].numel()
    # Five standard deviations of a share of n draws.
    assert abs(float(gone[:, 0].float().mean()) - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5
    assert torch.equal(model(ids).logits, clean)
    with neuron_dropout(model, 0.0):
        assert torch.equal(model(ids).logits, clean)
