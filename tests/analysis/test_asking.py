"""Asking a model: the two words' probabilities by plain forwards, and odd tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dkn_engine.analysis.experiments.fact_check.asking import yes_over_no
from dkn_engine.config import FactsConfig
from dkn_engine.errors import UserError
from tests.support.guests import mixed_model, state
from tests.support.tiny import tiny
from tests.support.words import text, words_tokenizer

TEMPLATE = {"template": "w30 {statement} w31", "yes": "w40", "no": "w41"}
SENTENCES = [text(ids) for ids in ([5, 9], [7, 3, 12, 20, 33], [8], [5, 9, 44])]


def by_hand(model: Any, ids: list[int], yes: int, no: int) -> float:
    with torch.no_grad():
        p = torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), dim=-1)
    return float(torch.log(p[yes] / p[no]))


@pytest.mark.parametrize("tokens", [1024, 12, 1], ids=["one batch", "two at most", "alone"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_the_words_probabilities_are_compared_behind_the_question(
    name: str, bos: bool, tokens: int
) -> None:
    model = tiny(name)
    found = yes_over_no(
        model, words_tokenizer(bos=bos), SENTENCES, TEMPLATE, FactsConfig(), max_tokens=tokens
    )
    for value, sentence in zip(found, SENTENCES, strict=True):
        ids = [*([1] if bos else []), 30, *(int(w[1:]) for w in sentence.split()), 31]
        assert value == pytest.approx(by_hand(model, ids, 40, 41), rel=1e-9)


def test_words_that_begin_alike_are_compared_where_they_part() -> None:
    """As where a tokenizer gives a lone space first."""
    model = tiny("llama")
    alike = TEMPLATE | {"yes": "w50 w40 w6", "no": "w50 w41"}
    found = yes_over_no(model, words_tokenizer(), SENTENCES[:1], alike, FactsConfig())
    assert found[0] == pytest.approx(by_hand(model, [30, 5, 9, 31, 50], 40, 41), rel=1e-9)


@pytest.mark.parametrize(("yes", "no"), [("w40", "w40"), ("w40", "w40 w41")])
def test_words_that_do_not_part_are_refused(yes: str, no: str) -> None:
    with pytest.raises(UserError, match="must differ in a token"):
        yes_over_no(
            tiny("llama"),
            words_tokenizer(),
            SENTENCES,
            TEMPLATE | {"yes": yes, "no": no},
            FactsConfig(),
        )


def test_questions_longer_than_the_context_have_no_score() -> None:
    model = tiny("llama", max_position_embeddings=8)
    found = yes_over_no(
        model, words_tokenizer(), [text([5] * 7), SENTENCES[0]], TEMPLATE, FactsConfig()
    )
    assert np.isnan(found[0])
    assert np.isfinite(found[1])
    assert yes_over_no(model, words_tokenizer(), [], TEMPLATE, FactsConfig()).shape == (0,)


def test_the_model_is_left_as_it_was() -> None:
    model = mixed_model("gpt2")
    before = state(model)
    yes_over_no(model, words_tokenizer(), SENTENCES, TEMPLATE, FactsConfig())
    assert state(model) == before
