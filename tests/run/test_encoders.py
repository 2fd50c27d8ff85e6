"""Encoders from a folder to results: loaded by their class, asked by the program, analysed."""

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
from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.models.load import names_encoder
from tests.support.tiny import tiny
from tests.support.tiny_encoders import tiny_encoder
from tests.support.words import text, words_tokenizer

CONFIG = dkn.Config().set("filter.min_probability", 1e-4)


def save(folder: Path, name: str, **changes: Any) -> Path:
    model = tiny(name) if name == "llama" else tiny_encoder(name, **changes)
    model.float().save_pretrained(folder)
    words_tokenizer(ends=name != "llama").save_pretrained(folder)
    return folder


def known_facts(model: Any, tokenizer: Any, n: int = 8) -> list[dkn.Fact]:
    """What the model itself says in blanks at any place, behind two wordings."""
    rng, facts = np.random.default_rng(0), []
    for i in range(n):
        words = [text([t]) for t in rng.integers(3, 60, size=6).tolist()]
        words[i % 6] = "[MASK]"
        ids = tokenizer(" ".join(words).replace("[MASK]", "<mask>"))["input_ids"]
        with torch.no_grad():
            said = int(model(input_ids=torch.tensor([ids])).logits[0, 1 + i % 6].argmax())
        other = " ".join([*words, "w9"])
        facts.append(dkn.Fact(f"f{i}", " ".join(words), text([said]), paraphrases=(other,)))
    return facts


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.mark.parametrize("name", ["bert", "albert", "distilbert", "modernbert"])
def test_a_masked_language_model_is_loaded_as_one(tmp_path: Path, name: str) -> None:
    changes = {"num_hidden_groups": 1} if name == "albert" else {}
    folder = save(tmp_path / name, name, **changes)
    model, tokenizer = dkn.load_model(folder, device="cpu")
    assert type(model).__name__.endswith("ForMaskedLM")
    assert names_encoder(folder)
    ids = torch.tensor([tokenizer("w5 <mask> w7")["input_ids"]])
    own = tiny_encoder(name, torch.float32, **changes)(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, own)
    assert 0 < dkn.answer_probability(model, tokenizer, ("w5 [MASK] w7", "w9"))[0] < 1


def test_what_has_no_masked_lm_head_is_not_loaded_as_one(tmp_path: Path) -> None:
    import transformers

    config = transformers.ElectraConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2
    )
    config.num_attention_heads = config.embedding_size = 4
    transformers.ElectraForPreTraining(config).save_pretrained(tmp_path)
    words_tokenizer(ends=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"weights are not in its files; the first: 'generator"):
        dkn.load_model(tmp_path, device="cpu")


def test_other_names_are_of_no_encoder(tmp_path: Path) -> None:
    assert not names_encoder("demo")
    assert not names_encoder(tmp_path / "nothing")
    assert not names_encoder(save(tmp_path / "llama", "llama"))
    (tmp_path / "config.json").write_text("{broken")
    assert not names_encoder(tmp_path)


def test_the_program_asks_at_every_blank(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = dkn.load_model(bert, device="cpu")
    facts = known_facts(model, tokenizer)
    lines = [json.dumps({**dataclasses.asdict(f), "prompt": f.prompt}) for f in facts]
    lines[0] = lines[0].replace("[MASK]", "_X_")
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    out = tmp_path / "run"
    told = ["find", "--model", str(bert), "--facts", str(tmp_path / "facts.jsonl")]
    told += ["--out", str(out), "--set", "filter.min_probability=1e-4", "--device", "cpu"]
    assert main([*told, "--no-report"]) == 0
    assert "left out" not in capsys.readouterr().err
    results = dkn.find_dkns(model, tokenizer, facts, CONFIG)
    assert [r.status for r in results] == ["ok"] * len(facts)
    again = dkn.find_dkns(model, tokenizer, facts, CONFIG, out)  # the same run, not another
    assert [r.prompt for r in again] == [f.prompt for f in facts]


def test_one_question(bert: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = ["find", "--model", str(bert), "--prompt", "w5 [MASK] w7", "--answer", "w9"]
    code = main([*told, "--out", str(tmp_path / "run"), "--device", "cpu", "--no-report"])
    assert code in {0, 3}
    assert "w5 [MASK] w7" in capsys.readouterr().out


def test_pairs_and_mappings_may_hold_any_blank(bert: Path) -> None:
    model, tokenizer = dkn.load_model(bert, device="cpu")
    given: list[Any] = [("w5 [MASK] w7", "w9"), {"prompt": "w5 _X_ w7", "answer": "w9"}]
    first, second = dkn.answer_probability(model, tokenizer, given)
    assert first == second
    scores = dkn.attribute(model, tokenizer, given).scores
    assert (scores[0] == scores[1]).all()


def test_left_to_right_is_an_option(bert: Path) -> None:
    model, tokenizer = dkn.load_model(bert, device="cpu")
    fact, steps = ("w5 [MASK] w7", "w9 w11"), []
    config = dkn.FactsConfig(answer_masks="left_to_right")
    for filled in ("<mask> <mask>", "w9 <mask>"):
        ids = torch.tensor([tokenizer(f"w5 {filled} w7")["input_ids"]])
        steps.append(model(input_ids=ids).logits[0].softmax(-1).detach())
    p = dkn.answer_probability(model, tokenizer, fact, facts_config=config)[0]
    assert p == pytest.approx(float(steps[0][2, 9] * steps[1][3, 11]), rel=1e-5)
    p = dkn.answer_probability(model, tokenizer, fact)[0]
    assert p == pytest.approx(float(steps[0][2, 9] * steps[0][3, 11]), rel=1e-5)


def test_settings_of_the_released_code_are_refused(bert: Path) -> None:
    model, tokenizer = dkn.load_model(bert, device="cpu")
    config = dkn.Config.released().facts
    with pytest.raises(UserError, match="which continues a decoder's prompt; got them with an"):
        dkn.answer_probability(model, tokenizer, ("w5 [MASK]", "w9"), facts_config=config)


def test_analyses_that_continue_texts_are_refused(bert: Path) -> None:
    model, tokenizer = dkn.load_model(bert, device="cpu")
    facts = known_facts(model, tokenizer, 2)
    results = dkn.find_dkns(model, tokenizer, facts, CONFIG)
    for name in ("complexity", "fact_check", "evolvability"):
        with pytest.raises(UnsupportedModelError, match=rf"{name} is for causal .* fills blanks"):
            getattr(analysis, name)(model, tokenizer, facts, results)


def test_analyses_that_edit_neurons_are_made(bert: Path) -> None:
    model, tokenizer = dkn.load_model(bert, device="cpu")
    facts = known_facts(model, tokenizer, 3)
    results = dkn.find_dkns(model, tokenizer, facts, CONFIG)
    table = analysis.robustness(model, tokenizer, facts, results, config=CONFIG, n_random=2)
    figures = {row.figure for row in table.rows}
    assert {"drop", "log_drop", "probability"} <= figures
    comparison = analysis.compare_clusterers(model, tokenizer, facts, CONFIG, n_draws=2)
    assert comparison.n_known == len(facts)
