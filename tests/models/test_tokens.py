"""Prompts and answers as tokens, for the conventions that tokenizers have."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from dkn_engine.config import AttributionConfig, Config, FactsConfig
from dkn_engine.errors import FactError, UserError
from dkn_engine.models.tokens import EncodedPrompt, encode_fact, mask_token_id, mask_token_text
from dkn_engine.types import Fact
from tests.support.words import words_tokenizer

DEFAULT = FactsConfig()
RELEASED = Config.released().facts
WORDS = ["The", "capital", "of", "is", "New", "York", "Berlin", "a"]


def wrap(tokenizer: Tokenizer, template: str = "$A", **special: str) -> Any:
    """A transformers tokenizer that puts the template's special tokens around a text."""
    from transformers import PreTrainedTokenizerFast

    marks = [(s, tokenizer.token_to_id(s)) for s in template.split() if s != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(template: str = "$A", extra: tuple[str, ...] = (), **special: str) -> Any:
    """As in GPT-2: a word carries the space in front of it; letters stand alone otherwise."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [w for word in WORDS for w in (word, f"\u0120{word}") if len(w) > 1]
    vocab = {t: i for i, t in enumerate(["<s>", "</s>", *extra, *letters, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return wrap(tokenizer, template, **special)


def sentence_piece(
    template: str = "$A",
    *,
    dummy: bool,
    across: str | None = None,
    more: str = "",
    as_normalizer: bool = False,
) -> Any:
    """As in LLaMA 2 (``dummy``: a space before any text) or Gemma (none).

    ``more`` are further letters. The space in front of a text is LLaMA's newer pre-tokenizer's, or
    with ``as_normalizer`` its older normalizer's. ``across`` is a piece that spans words, so that
    joining a text changes its pieces.
    """
    letters = "TheapitlofsNwYorkBrcn" + more
    pieces = [("<unk>", -20.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581", -5.0)]
    pieces += [(c, -10.0) for c in dict.fromkeys(letters)]
    pieces += [(w, -3.0) for w in WORDS if len(w) > 1] + [(f"\u2581{w}", -2.0) for w in WORDS]
    if across is not None:
        pieces.append((across, -1.0))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    if as_normalizer:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    elif dummy:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    return wrap(tokenizer, template, unk_token="<unk>", bos_token="<s>")


def tokens(tokenizer: Any, encoded: EncodedPrompt) -> tuple[list[str], list[str]]:
    convert = tokenizer.convert_ids_to_tokens
    return convert(list(encoded.prompt_ids)), convert(list(encoded.answer_ids))


def test_byte_level_answer_carries_the_space() -> None:
    tokenizer = byte_level()
    encoded = encode_fact(tokenizer, "The capital is", "Berlin", config=DEFAULT)
    assert tokens(tokenizer, encoded) == (
        ["The", "\u0120capital", "\u0120is"],
        ["\u0120Berlin"],
    )


@pytest.mark.parametrize("dummy", [True, False], ids=["dummy-space", "no-dummy-space"])
def test_sentence_piece_space_is_not_doubled(dummy: bool) -> None:
    tokenizer = sentence_piece(dummy=dummy)
    encoded = encode_fact(tokenizer, "The capital is", "New York", config=DEFAULT)
    _, answer = tokens(tokenizer, encoded)
    assert answer == ["\u2581New", "\u2581York"]
    joined = tokenizer("The capital is New York", add_special_tokens=False)["input_ids"]
    assert [*encoded.prompt_ids, *encoded.answer_ids] == joined


@pytest.mark.parametrize("make", [byte_level, lambda t: sentence_piece(t, dummy=True)])
@pytest.mark.parametrize(
    ("template", "before"),
    [("$A", []), ("<s> $A", ["<s>"]), ("<s> $A </s>", ["<s>"]), ("$A </s>", [])],
)
def test_prompt_keeps_what_the_tokenizer_puts_in_front_only(
    make: Any, template: str, before: list[str]
) -> None:
    tokenizer = make(template)
    plain = encode_fact(make("$A"), "The capital is", "Berlin", config=DEFAULT)
    encoded = encode_fact(tokenizer, "The capital is", "Berlin", config=DEFAULT)
    assert tokens(tokenizer, encoded)[0] == before + tokens(tokenizer, plain)[0]
    assert encoded.answer_ids == plain.answer_ids


def test_border_that_moves_when_joined_is_refused_with_the_id() -> None:
    tokenizer = sentence_piece(dummy=False, across="\u2581is\u2581Berlin")
    with pytest.raises(FactError, match=r"fact 'f-7': .*tokenised otherwise when joined.*Berlin"):
        encode_fact(tokenizer, "The capital is", "Berlin", config=DEFAULT, fact_id="f-7")
    # The released code never looks at the joined text.
    encode_fact(tokenizer, "The capital is", "Berlin", config=FactsConfig(answer_space=False))


def test_released_answer_has_no_space_and_keeps_special_tokens() -> None:
    tokenizer = byte_level("<s> $A")
    encoded = encode_fact(tokenizer, "The capital is", "Berlin", config=RELEASED)
    assert tokens(tokenizer, encoded) == (
        ["<s>", "The", "\u0120capital", "\u0120is"],
        ["<s>", "Berlin"],
    )


@pytest.mark.parametrize(
    ("config", "answer"),
    [
        (FactsConfig(answer_space=False), ["Berlin"]),
        (FactsConfig(answer_special_tokens=True), ["<s>", "\u0120Berlin"]),
    ],
    ids=["no-space", "special-tokens"],
)
def test_each_released_option_alone(config: FactsConfig, answer: list[str]) -> None:
    tokenizer = byte_level("<s> $A")
    encoded = encode_fact(tokenizer, "The capital is", "Berlin", config=config)
    assert tokens(tokenizer, encoded)[1] == answer


@pytest.mark.parametrize("answer", ["", "  ", "\n"])
@pytest.mark.parametrize("config", [DEFAULT, RELEASED], ids=["default", "released"])
def test_empty_answer_is_refused(answer: str, config: FactsConfig) -> None:
    with pytest.raises(FactError, match=r"^fact 'f': the answer is empty$"):
        encode_fact(byte_level(), "The capital is", answer, config=config, fact_id="f")


@pytest.mark.parametrize("config", [DEFAULT, RELEASED], ids=["default", "released"])
def test_answer_without_a_token_is_refused(config: FactsConfig) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))  # anything else vanishes
    with pytest.raises(FactError, match=r"^fact 'f': the answer 'b' has no token$"):
        encode_fact(wrap(tokenizer), "a", "b", config=config, fact_id="f")


def test_prompt_without_a_token_is_refused_unless_a_special_token_leads() -> None:
    with pytest.raises(FactError, match="prompt '' has no token"):
        encode_fact(byte_level(), "", "Berlin", config=DEFAULT)
    encoded = encode_fact(byte_level("<s> $A"), "", "Berlin", config=DEFAULT)
    assert len(encoded.prompt_ids) == 1


def test_fact_must_fit_the_context() -> None:
    tokenizer = byte_level()
    # 3 + 2 tokens, the last of which is not fed to the model.
    fits: dict[str, Any] = {"config": DEFAULT, "max_length": 4}
    encode_fact(tokenizer, "The capital is", "New York", **fits)
    with pytest.raises(FactError, match=r"fact 'f': .* need 5 positions; .* context has 4"):
        encode_fact(tokenizer, "The capital of is", "New York", **fits, fact_id="f")


@pytest.mark.parametrize(
    ("extra", "special", "expected"),
    [
        (("[M]", "<|endoftext|>"), {"mask_token": "[M]", "eos_token": "</s>"}, "[M]"),
        ((), {"eos_token": "</s>"}, "</s>"),
    ],
    ids=["mask", "end-of-text"],
)
def test_mask_token(extra: tuple[str, ...], special: dict[str, str], expected: str) -> None:
    tokenizer = byte_level(extra=extra, **special)
    assert tokenizer.convert_ids_to_tokens(mask_token_id(tokenizer)) == expected


@pytest.mark.parametrize("text", ["</s>", "[M]", "capital"])
def test_mask_token_that_is_asked_for(text: str) -> None:
    special = {"mask_token": "[M]", "eos_token": "</s>"}
    tokenizer = byte_level(extra=("[M]",), **special)
    found = mask_token_id(tokenizer, text)
    assert tokenizer.decode([found]) == text
    assert mask_token_text(tokenizer, AttributionConfig(mask_token=text)) == text
    assert mask_token_text(tokenizer, AttributionConfig()) == "[M]"
    assert mask_token_text(tokenizer, AttributionConfig(baseline="zero")) is None


@pytest.mark.parametrize(
    ("text", "got"),
    [("w5 w6", r"2 tokens \["), ("</s></s>", "2 tokens"), ("moon", "the unknown token '<unk>'")],
)
def test_mask_token_must_be_one_that_the_tokenizer_has(text: str, got: str) -> None:
    tokenizer = words_tokenizer()
    message = rf"mask_token must be 'auto' or .* exactly one token .*; {text!r} is {got}"
    with pytest.raises(UserError, match=message):
        mask_token_id(tokenizer, text)


def test_no_mask_token_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"tokenizer must have a mask token .* baseline='zero'"):
        mask_token_id(byte_level())


@pytest.mark.parametrize("make", [byte_level, lambda: sentence_piece(dummy=True)])
@pytest.mark.parametrize("space", [" ", "\u00a0", "\u200b"], ids=ascii)
def test_space_that_nobody_sees_makes_no_other_question(make: Any, space: str) -> None:
    tokenizer = make()
    seen = Fact("a", f"{space}The capital is{space}", f"{space}Berlin{space}")
    encoded = encode_fact(tokenizer, seen.prompt, seen.answer, config=DEFAULT)
    assert encoded == encode_fact(tokenizer, "The capital is", "Berlin", config=DEFAULT)


CHINESE = "\u6cd5\u56fd\u7684\u9996\u90fd\u662f", "\u5df4\u9ece"  # The capital of France is, Paris


@pytest.mark.parametrize("as_normalizer", [False, True], ids=["metaspace", "normalizer"])
@pytest.mark.parametrize("template", ["$A", "<s> $A"])
@pytest.mark.parametrize("prompt", [CHINESE[0], f"The capital is {CHINESE[0]}\n"], ids=ascii)
def test_an_answer_without_space_follows_at_once_where_tokenizers_put_one_before_any_text(
    as_normalizer: bool, template: str, prompt: str
) -> None:
    tokenizer = sentence_piece(
        template, dummy=True, more="".join(CHINESE) + "\n", as_normalizer=as_normalizer
    )
    config = FactsConfig(answer_space=False)
    encoded = encode_fact(tokenizer, prompt, CHINESE[1], config=config)
    assert tokens(tokenizer, encoded)[1] == list(CHINESE[1])
    assert [*encoded.prompt_ids, *encoded.answer_ids] == tokenizer(prompt + CHINESE[1])["input_ids"]


def test_an_answer_without_space_that_changes_the_prompts_tokens_is_refused() -> None:
    tokenizer = sentence_piece(dummy=True, across="".join(CHINESE)[-3:], more="".join(CHINESE))
    with pytest.raises(FactError, match=r"^fact 'f': prompt and answer are tokenised otherwise"):
        encode_fact(tokenizer, *CHINESE, config=FactsConfig(answer_space=False), fact_id="f")


def test_the_released_answer_stays_a_text_of_its_own() -> None:
    tokenizer = sentence_piece("<s> $A", dummy=True)
    encoded = encode_fact(tokenizer, "The capital is", "Berlin", config=RELEASED)
    assert tokens(tokenizer, encoded)[1] == ["<s>", "\u2581Berlin"]


@pytest.mark.parametrize("config", [DEFAULT, RELEASED, FactsConfig(answer_space=False)])
@pytest.mark.parametrize("answer", ["Z", "New Zork", "\u5df4"], ids=ascii)
def test_an_answer_that_the_tokenizer_does_not_know_is_refused(
    config: FactsConfig, answer: str
) -> None:
    message = rf"^fact 'f': the answer '{answer}' holds what the tokenizer does not know .*'<unk>'"
    with pytest.raises(FactError, match=message):
        encode_fact(sentence_piece(dummy=True), "The", answer, config=config, fact_id="f")


@pytest.mark.parametrize("config", [DEFAULT, RELEASED, FactsConfig(answer_space=False)])
@pytest.mark.parametrize("answer", ["<unk>", "w7 <unk>"])
def test_the_unknown_token_written_out_is_no_answer(config: FactsConfig, answer: str) -> None:
    message = rf"^fact 'f': the answer '{answer}' holds the tokenizer's unknown token '<unk>'"
    with pytest.raises(FactError, match=message):
        encode_fact(words_tokenizer(), "w5", answer, config=config, fact_id="f")


def test_the_unknown_token_written_out_can_be_in_a_prompt() -> None:
    encoded = encode_fact(words_tokenizer(), "w5 <unk>", "w7", config=DEFAULT)
    assert (encoded.prompt_ids, encoded.answer_ids) == ((5, 0), (7,))


def test_an_end_of_text_that_is_also_the_unknown_token_can_be_asked_for() -> None:
    tokenizer = byte_level(unk_token="</s>", bos_token="</s>", eos_token="</s>")
    config = FactsConfig(answer_space=False)
    encoded = encode_fact(tokenizer, "The capital is", "</s>", config=config)
    assert encoded.answer_ids == (tokenizer.eos_token_id,)


def test_an_unknown_word_in_a_prompt_is_said_once_a_tokenizer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = words_tokenizer()
    for prompt in ("w5 w6", "w5 Zork", "w5 Zork", "Zork w6"):
        encode_fact(tokenizer, prompt, "w7", config=DEFAULT, fact_id="f")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "fact 'f': the prompt 'w5 Zork' holds what" in record.message
    encode_fact(words_tokenizer(), "Zork", "w7", config=DEFAULT)
    assert len(caplog.records) == 2


def test_a_token_that_also_stands_for_the_unknown_is_not_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """GPT-2's end-of-text token is its unknown token, too, and OPT's is in front of every text."""
    tokenizer = byte_level("</s> $A", unk_token="</s>", bos_token="</s>", eos_token="</s>")
    encode_fact(tokenizer, "The capital is", "Berlin", config=DEFAULT)
    encode_fact(tokenizer, "The </s> is", "Berlin", config=RELEASED)
    assert caplog.records == []


@pytest.mark.parametrize("make", [byte_level, lambda t, **o: sentence_piece(t, dummy=True)])
def test_the_first_token_is_there_once_where_the_prompt_brings_it(make: Any) -> None:
    tokenizer = make("<s> $A", bos_token="<s>")
    one = encode_fact(tokenizer, "<s>The capital is", "Berlin", config=DEFAULT)
    assert one.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert one.prompt_ids[0] == tokenizer.bos_token_id
    assert (
        tokens(tokenizer, one)[0][-2:]
        == tokens(tokenizer, encode_fact(tokenizer, "The capital is", "Berlin", config=DEFAULT))[0][
            -2:
        ]
    )


def test_a_word_that_is_known_behind_a_space_only_is_known() -> None:
    pieces = [("<unk>", -20.0), ("</s>", 0.0), ("\u2581The", -2.0), ("\u2581Zork", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    known = wrap(tokenizer, unk_token="<unk>")
    encoded = encode_fact(known, "The", "Zork", config=DEFAULT)
    assert tokens(known, encoded)[1] == ["\u2581Zork"]
