"""A word-level tokenizer for the tiny models: token i is the word ``w<i>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support.tiny import MASK_ID, VOCABULARY

SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>", MASK_ID: "<mask>"}


def word(i: int) -> str:
    return SPECIAL.get(i, f"w{i}")


def text(ids: Sequence[int]) -> str:
    return " ".join(word(i) for i in ids)


def words_tokenizer(*, bos: bool = False, ends: bool = False) -> Any:
    """Splits at spaces; ``bos``: puts ``<s>`` in front of a text, as LLaMA's does.

    ``ends``: puts ``<s>`` in front of a text and ``</s>`` behind it, as RoBERTa's does.
    """
    from transformers import PreTrainedTokenizerFast

    vocab = {word(i): i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos or ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
    )


def sentinel_words() -> Any:
    """As T5's: two sentinels in the places of w3 and w4, ``</s>`` behind a text, nothing in front.

    It has neither a mask token nor one that begins a text.
    """
    from transformers import PreTrainedTokenizerFast

    names = {0: "<pad>", 1: "</s>", 2: "<unk>", 3: "<extra_id_0>", 4: "<extra_id_1>"}
    vocab = {names.get(i, f"w{i}"): i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<extra_id_0>", "<extra_id_1>"],
    )
