"""Encoder-decoders from a folder to results: loaded, asked by the program, analysed, edited."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dkn_engine as dkn
from dkn_engine import analysis
from dkn_engine.cli.main import main
from dkn_engine.compat import KnowledgeNeurons
from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.models.load import names_encoder
from tests.support.seq2seq_families import encoder_decoder
from tests.support.tiny import MASK_ID
from tests.support.words import sentinel_words, text, words_tokenizer

CONFIG = dkn.Config().set("filter.min_probability", 1e-4)
STARTS = {"t5": {"decoder_start_token_id": 0}, "bart": {"decoder_start_token_id": 2}}


def save(folder: Path, kind: str) -> Path:
    model: Any = encoder_decoder(kind, torch.float32, **STARTS[kind])
    model.save_pretrained(folder)
    words = sentinel_words() if kind == "t5" else words_tokenizer(ends=True)
    words.save_pretrained(folder)
    return folder


def known_facts(model: Any, tokenizer: Any, n: int = 6) -> list[dkn.Fact]:
    """What a T5 itself writes for blanks at any place, behind two wordings."""
    rng, facts = np.random.default_rng(0), []
    for i in range(n):
        words = [text([t]) for t in rng.integers(5, 60, size=6).tolist()]
        words[i] = "[MASK]"
        read = tokenizer(" ".join(words).replace("[MASK]", "<extra_id_0>"), return_tensors="pt")
        with torch.no_grad():
            logits = model(**read, decoder_input_ids=torch.tensor([[0, 3]])).logits[0, 1]
        logits[:5] = logits[MASK_ID] = -torch.inf  # which are no words
        other = " ".join([*words, "w9"])
        answer = text([int(logits.argmax())])
        facts.append(dkn.Fact(f"f{i}", " ".join(words), answer, paraphrases=(other,)))
    return facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "t5", "t5")


@pytest.fixture
def loaded(folder: Path) -> tuple[Any, Any]:
    return dkn.load_model(folder, device="cpu")


@pytest.mark.parametrize("kind", STARTS)
def test_an_encoder_decoder_is_loaded_whole(tmp_path: Path, kind: str) -> None:
    saved = save(tmp_path / kind, kind)
    model, tokenizer = dkn.load_model(saved, device="cpu")
    assert type(model).__name__.endswith("ForConditionalGeneration")
    assert names_encoder(saved)
    assert 0 < dkn.answer_probability(model, tokenizer, ("w5 [MASK] w7", "w9"))[0] < 1
    assert dkn.attribute(model, tokenizer, ("w5 [MASK] w7", "w9")).path == ("blocks",)


def test_the_program_asks_at_every_blank(
    folder: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = loaded
    facts = known_facts(model, tokenizer)
    lines = [json.dumps({**dataclasses.asdict(f), "prompt": f.prompt}) for f in facts]
    lines[0] = lines[0].replace("[MASK]", "_X_")
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    out = tmp_path / "run"
    told = ["find", "--model", str(folder), "--facts", str(tmp_path / "facts.jsonl")]
    told += ["--out", str(out), "--set", "filter.min_probability=1e-4", "--device", "cpu"]
    assert main([*told, "--no-report"]) == 0
    assert "left out" not in capsys.readouterr().err
    results = dkn.find_dkns(model, tokenizer, facts, CONFIG)
    known = [r for r in results if r.status == "ok"]
    assert len(known) > len(facts) / 2
    assert all(len(r.neurons) for r in known)
    again = dkn.find_dkns(model, tokenizer, facts, CONFIG, out)  # the same run, not another
    assert [r.prompt for r in again] == [f.prompt for f in facts]


def test_a_fact_is_the_same_whatever_is_asked_beside_it(loaded: Any) -> None:
    """Also beside prompts of other lengths."""
    model, tokenizer = loaded
    facts = known_facts(model, tokenizer)
    facts = [facts[0], dkn.Fact("longer", "w7 w9 w11 [MASK] w5 w6 w8 w10", "w12"), *facts[1:]]
    together = dkn.attribute(model, tokenizer, facts)
    for i, fact in enumerate(facts):
        alone = dkn.attribute(model, tokenizer, fact)
        assert alone.probability[0] == pytest.approx(together.probability[i], rel=1e-5)
        apart = np.linalg.norm(alone.scores[0] - together.scores[i])
        # Both to the tolerance of 1e-3, and in float32.
        assert apart <= 2e-3 * np.linalg.norm(alone.scores[0])


def test_interventions_and_interactions(loaded: Any) -> None:
    """Neurons off by the engine's passes, in its weights, and by a hook of our own."""
    model, tokenizer = loaded
    fact, neurons = ("w5 [MASK] w7", "w9 w11"), [(0, 3), (2, 7)]

    def asked(**more: Any) -> float:
        with dkn.intervene(model, neurons, **more):
            return float(dkn.answer_probability(model, tokenizer, fact)[0])

    def clear(layer: int, index: int) -> Any:
        def hook(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = args[0].clone()
            x[..., index] = 0
            return (x, *args[1:])

        down = model.decoder.block[layer].layer[2].DenseReluDense.wo
        return down.register_forward_pre_hook(hook)

    handles = [clear(*neuron) for neuron in neurons]
    own = dkn.answer_probability(model, tokenizer, fact)[0]
    for handle in handles:
        handle.remove()
    clean = dkn.answer_probability(model, tokenizer, fact)[0]
    assert abs(own - clean) > 1e-3 * clean
    assert asked() == pytest.approx(own, rel=1e-4)
    assert asked(on="weights") == pytest.approx(own, rel=1e-4)


def test_analyses_that_continue_texts_are_refused(loaded: Any) -> None:
    model, tokenizer = loaded
    facts = known_facts(model, tokenizer)
    results = dkn.find_dkns(model, tokenizer, facts, CONFIG)
    for name in ("complexity", "fact_check", "evolvability"):
        with pytest.raises(UnsupportedModelError, match=rf"{name} is for causal .* its encoder$"):
            getattr(analysis, name)(model, tokenizer, facts, results)


def test_analyses_that_edit_neurons_are_made(loaded: Any) -> None:
    model, tokenizer = loaded
    facts = known_facts(model, tokenizer, 3)
    results = dkn.find_dkns(model, tokenizer, facts, CONFIG)
    table = analysis.robustness(model, tokenizer, facts, results, config=CONFIG, n_random=2)
    assert {"drop", "log_drop", "probability"} <= {row.figure for row in table.rows}
    comparison = analysis.compare_clusterers(model, tokenizer, facts, CONFIG, n_draws=2)
    assert comparison.n_known == sum(r.status == "ok" for r in results)


def test_eleutherais_class_has_no_encoder_decoders(loaded: Any) -> None:
    model, tokenizer = loaded
    with pytest.raises(UnsupportedModelError, match="a decoder or an encoder alone"):
        KnowledgeNeurons(model, tokenizer)


def test_settings_that_have_no_meaning_are_refused(loaded: Any) -> None:
    model, tokenizer = loaded
    config = dkn.Config.released().facts
    with pytest.raises(UserError, match="which continues a decoder's prompt; got them with an"):
        dkn.answer_probability(model, tokenizer, ("w5 [MASK]", "w9"), facts_config=config)
    for positions in ("all", (0, 1)):
        scoring = dkn.AttributionConfig(positions=positions)
        with pytest.raises(UserError, match=r"positions must be 'answer' for encoder-decoders"):
            dkn.attribute(model, tokenizer, ("w5 [MASK]", "w9"), scoring)
