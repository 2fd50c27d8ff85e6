"""Prompts with a blank as an encoder's tokens, for the conventions that tokenizers have."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from dkn_engine.errors import FactError, UserError
from dkn_engine.models.masked_answers import MaskedAnswer, encode_masked_answer

WORDS = ["the", "capital", "of", "france", "is", "paris", "new", "york", "."]


def wrap(made: Tokenizer, cls: str, sep: str, mask: str, lstrip: bool, unk: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    made.add_special_tokens([AddedToken(mask, lstrip=lstrip, normalized=False)])
    marks = [(s, made.token_to_id(s)) for s in (cls, sep)]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=marks
    )
    names = {"cls_token": cls, "sep_token": sep, "mask_token": mask, "unk_token": unk}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def wordpiece() -> Any:
    """As BERT's: lower case, words and their continuations, space is lost."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##land", "eng", "##s"]
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrap(made, "[CLS]", "[SEP]", "[MASK]", False, "[UNK]")


def byte_level() -> Any:
    """As RoBERTa's and ModernBERT's: a word carries its space, and so does the mask."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [w for word in WORDS if len(word) > 1 for w in (word, f"\u0120{word}")]
    pieces = ["<s>", "</s>", "<unk>", "<mask>", *letters, *words]
    vocab = {p: i for i, p in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return wrap(made, "<s>", "</s>", "<mask>", True, "<unk>")


def sentence_piece() -> Any:
    """As ALBERT's and DeBERTa's: a space in front of any text, and behind a mask."""
    words = [f"\u2581{w}" for w in WORDS]
    pieces = ["<unk>", "[CLS]", "[SEP]", "[MASK]", "\u2581", "."]
    vocab = [(p, 0.0) for p in pieces] + [(w, -1.0) for w in words]
    vocab += [(c, -9.0) for c in sorted(set("".join(WORDS)) - {"."})]
    made = Tokenizer(models.Unigram(vocab, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return wrap(made, "[CLS]", "[SEP]", "[MASK]", False, "<unk>")


TOKENIZERS = {"wordpiece": wordpiece, "byte": byte_level, "piece": sentence_piece}
PLACES = {
    "middle": ("[MASK] is the capital of france.", "paris"),
    "inside": ("the capital of [MASK] is paris.", "france"),
    "end": ("the capital of france is [MASK].", "paris"),
    "two-tokens": ("the capital of [MASK] is paris.", "new york"),
    "no-stop": ("the capital of france is [MASK]", "paris"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_sentence_is_the_tokenizers_own_with_the_answer_masked(kind: str, place: str) -> None:
    tokenizer, (prompt, answer) = TOKENIZERS[kind](), PLACES[place]
    found = encode_masked_answer(tokenizer, prompt, answer)
    whole = tokenizer(prompt.replace("[MASK]", answer))["input_ids"]
    assert len(found.answer_ids) == len(answer.split())
    assert filled(found) == whole
    masked = [at for at, token in enumerate(found.ids) if token == tokenizer.mask_token_id]
    assert masked == list(range(found.first, found.first + len(found.answer_ids)))
    words = tokenizer.convert_ids_to_tokens(list(found.answer_ids))
    assert [w.strip("\u0120\u2581") for w in words] == answer.split()


def filled(found: MaskedAnswer) -> list[int]:
    ids = list(found.ids)
    ids[found.first : found.first + len(found.answer_ids)] = found.answer_ids
    return ids


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("blank", ["[MASK]", "_X_", "[Y]", "<mask>", "___"])
def test_a_blank_may_be_spelled_as_datasets_and_tokenizers_do(kind: str, blank: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    prompts = [f"the capital of {b} is paris." for b in ("[MASK]", blank)]
    first, second = (encode_masked_answer(tokenizer, p, "france") for p in prompts)
    assert first == second


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_prompt_without_a_blank_is_asked_at_its_end_in_front_of_a_full_stop(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    plain = encode_masked_answer(tokenizer, "the capital of france is", "paris")
    blank = encode_masked_answer(tokenizer, "the capital of france is [MASK].", "paris")
    assert plain == blank


def test_what_looks_like_another_blank_is_text_beside_a_mask() -> None:
    """In SMILES [Y] is yttrium."""
    tokenizer = wordpiece()
    found = encode_masked_answer(tokenizer, "[Y] is the [MASK] of france.", "capital")
    assert filled(found) == tokenizer("[Y] is the capital of france.")["input_ids"]


def test_an_answer_whose_tokens_are_others_in_the_sentence_is_refused() -> None:
    tokenizer = wordpiece()
    with pytest.raises(FactError, match=r"tokenised otherwise when joined"):
        encode_masked_answer(tokenizer, "paris[MASK] is new.", "york")


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ("[MASK] of [MASK]", "paris", r"fact 'x': expected one blank; got 2 in"),
        ("the capital is", "zyx", r"fact 'x': the answer 'zyx' holds what the tokenizer does not"),
        ("the capital is", "[MASK]", r"fact 'x': the answer '\[MASK\]' has the mask token"),
        ("the capital is", " ", r"fact 'x': the answer is empty"),
        ("the capital is", "paris", r"fact 'x': prompt and answer need 7 positions; .* has 6"),
        ("the capital is \ud800", "paris", r"fact 'x': the prompt .* is not valid Unicode"),
    ],
)
def test_refusals_name_the_fact(prompt: str, answer: str, message: str) -> None:
    with pytest.raises(FactError, match=message):
        encode_masked_answer(wordpiece(), prompt, answer, max_length=6, fact_id="x")


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    tokenizer = wordpiece()
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="tokenizer must have a mask token for a masked language"):
        encode_masked_answer(tokenizer, "the capital is", "paris")
