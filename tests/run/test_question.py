"""One question, by a model's name or a loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.facts.ids import made_id
from tests.run.test_pipeline import CONFIG, facts
from tests.support.saved import save_tiny
from tests.support.tiny import tiny
from tests.support.words import words_tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


def test_one_question_is_a_run_of_one_fact(model: Any, tmp_path: Path) -> None:
    fact, tokenizer = facts(model)[0], words_tokenizer()
    asked = {"model": model, "tokenizer": tokenizer, "config": CONFIG}
    found = dkn.find(fact.prompt, fact.answer, out=tmp_path / "run", **asked)
    (expected,) = dkn.find_dkns(model, tokenizer, (fact.prompt, fact.answer), CONFIG)
    assert found.fact_id == made_id(fact.prompt, fact.answer) == expected.fact_id
    assert (found.probability, found.dkn) == (expected.probability, expected.dkn)
    assert found.neurons.tolist() == expected.neurons.tolist()
    (kept,) = dkn.read_results(tmp_path / "run")
    assert kept.probability == found.probability


def test_a_model_by_name_is_loaded(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    found = dkn.find("w5 w9", "w13", model=folder, config=CONFIG)
    (expected,) = dkn.find_dkns(*dkn.load_model(folder), ("w5 w9", "w13"), CONFIG)
    assert (found.status, found.probability) == (expected.status, expected.probability)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"tokenizer": words_tokenizer()}, dkn.UserError, "tokenizer must be None where model is"),
        ({"model": tiny("gpt2", torch.float32)}, dkn.UserError, "tokenizer must be the model's"),
        ({"prompt": " "}, dkn.FactError, "'prompt' is empty"),
        ({"prompt": "is [MASK]"}, dkn.FactError, "would be asked as text"),
    ],
    ids=["two", "none", "empty", "blank"],
)
def test_what_is_no_question_is_refused(asked: dict[str, Any], error: Any, message: str) -> None:
    given = {"prompt": "w5 w9", "answer": "w13"} | asked
    if "prompt" in asked:
        given |= {"model": tiny("gpt2", torch.float32), "tokenizer": words_tokenizer()}
    with pytest.raises(error, match=message):
        dkn.find(**given)
