"""Facts of encoder-decoders as tokens: against transformers' own labels and probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import dkn_engine as dkn
from dkn_engine.errors import FactError, UserError
from dkn_engine.models.tokens import mask_token_id
from dkn_engine.models.written_answers import decoder_inputs, encode_written_answer, writes_of
from tests.support.seq2seq_families import encoder_decoder
from tests.support.words import sentinel_words, words_tokenizer

MASK = 60


def t5(**changes: Any) -> Any:
    return encoder_decoder("t5", decoder_start_token_id=0, **changes)


def bart() -> Any:
    return encoder_decoder("bart", decoder_start_token_id=2)


def probability(model: Any, source: list[int], labels: list[int], answer: range) -> float:
    """Of the labels at ``answer``, by the model's own shift of them."""
    logits = model(input_ids=torch.tensor([source]), labels=torch.tensor([labels])).logits[0]
    steps = [logits[i].log_softmax(-1)[labels[i]].item() for i in answer]
    return math.exp(sum(steps))


def test_t5_is_asked_by_its_sentinels() -> None:
    one = encode_written_answer(sentinel_words(), "w7 w8 [MASK] w9", "w20 w21")
    assert one.source == (7, 8, 3, 9, 1)
    assert one.blank == 2
    assert one.labels == (3, 20, 21)
    assert (one.first, one.answer_ids) == (1, (20, 21))
    assert encode_written_answer(sentinel_words(), "w7 w8 <extra_id_0> w9", "w20 w21") == one
    model, expected = t5(), [3, 20, 21, 4, 1]  # as span corruption writes them
    found = dkn.answer_probability(model, sentinel_words(), ("w7 w8 _X_ w9", "w20 w21"))[0]
    own = probability(model, [7, 8, 3, 9, 1], expected, range(1, 3))
    assert found == pytest.approx(own, rel=1e-9)


def test_bart_writes_the_whole_sentence() -> None:
    words = words_tokenizer(ends=True)
    one = encode_written_answer(words, "w7 w8 [MASK] w9", "w20 w21")
    assert one.source == (1, 7, 8, MASK, 9, 2)
    assert one.blank == 3
    assert one.labels == (1, 7, 8, 20, 21, 9, 2)
    assert (one.first, one.answer_ids) == (3, (20, 21))
    assert decoder_inputs(bart(), one.labels) == (2, 1, 7, 8, 20, 21, 9)
    found = dkn.answer_probability(bart(), words, ("w7 w8 <mask> w9", "w20 w21"))[0]
    own = probability(bart(), [1, 7, 8, MASK, 9, 2], list(one.labels), range(3, 5))
    assert found == pytest.approx(own, rel=1e-9)


def test_a_model_that_was_fine_tuned_writes_the_answer() -> None:
    config = dkn.FactsConfig(decoder_writes="answer")
    for prompt in ("w7 w8", "w7 w8 [MASK]", "w7 w8 [MASK] ."):
        found = dkn.answer_probability(
            t5(), sentinel_words(), (prompt, "w20"), facts_config=config
        )[0]
        own = probability(t5(), [7, 8, 1], [20, 1], range(1))
        assert found == pytest.approx(own, rel=1e-9)
    words = words_tokenizer(ends=True)
    found = dkn.answer_probability(bart(), words, ("w7 w8", "w20 w21"), facts_config=config)[0]
    own = probability(bart(), [1, 7, 8, 2], [1, 20, 21, 2], range(1, 3))
    assert found == pytest.approx(own, rel=1e-9)
    with pytest.raises(FactError, match=r"not at the end of 'w7 \[MASK\] w8', behind which alone"):
        encode_written_answer(words, "w7 [MASK] w8", "w20", writes="answer")


def test_mbart_puts_its_language_in_front() -> None:
    """Its decoder begins with the labels' last token, as the model itself has it."""
    model: Any = encoder_decoder("mbart")
    labels = [7, 8, 2, 50]  # the language behind the end of a text
    assert decoder_inputs(model, tuple(labels)) == (50, 7, 8, 2)


def test_what_is_written_by_the_tokenizer() -> None:
    assert writes_of(sentinel_words()) == "blank"
    assert writes_of(words_tokenizer(ends=True)) == "text"
    without = words_tokenizer(ends=True)
    without.mask_token = None
    assert writes_of(without) == "answer"


def test_t5_masks_by_its_second_sentinel() -> None:
    words = sentinel_words()
    assert mask_token_id(words) == 4
    assert mask_token_id(words, "end_of_text") == 1
    assert mask_token_id(words, "w9") == 9
    begins = sentinel_words()
    begins.bos_token = "w9"  # a decoder's, which has such tokens among others
    assert mask_token_id(begins) == 1


@pytest.mark.parametrize(
    ("prompt", "answer", "words"),
    [
        ("w7 [MASK] [MASK]", "w20", "expected one blank; got 2"),
        ("w7 [MASK]", "nothing", "holds what the tokenizer does not know"),
        ("w7 [MASK]", " ", "the answer is empty"),
        ("w7 w8 w9 [MASK]", "w20", "need 5 positions; the model's context has 4"),
    ],
)
def test_facts_that_cannot_be_asked(prompt: str, answer: str, words: str) -> None:
    with pytest.raises(FactError, match=rf"^fact 'f': .*{words}"):
        encode_written_answer(sentinel_words(), prompt, answer, max_length=4, fact_id="f")


def test_what_a_way_needs_is_said() -> None:
    words = words_tokenizer(ends=True)
    with pytest.raises(UserError, match=r"must have the token '<extra_id_0>' with facts.decoder_"):
        encode_written_answer(words, "w7 [MASK]", "w20", writes="blank")
    with pytest.raises(UserError, match=r"must have a mask token with facts.decoder_writes='text'"):
        encode_written_answer(sentinel_words(), "w7 [MASK]", "w20", writes="text")
    model: Any = t5()
    model.config.decoder_start_token_id = None
    with pytest.raises(UserError, match=r"config.decoder_start_token_id must be the token"):
        dkn.answer_probability(model, sentinel_words(), ("w7 [MASK]", "w20"))
    big = words_tokenizer(ends=True)
    big.add_tokens([f"w{i}" for i in range(61, 100)])
    with pytest.raises(FactError, match="token 99 is not among the model's 61"):
        dkn.answer_probability(bart(), big, ("w7 [MASK]", "w99"))
