"""The recipe of ``templama_model`` for a small BERT: TempLAMA's facts, blanks wherever they are.

A sentence's answer takes as many masks as it has tokens, each predicted with all of them masked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dkn_engine as dkn
from benchmarks.scale.templama_model import Batch, Text, Training, batch_of
from dkn_engine.facts.blanks import around_blank
from dkn_engine.models.masked_answers import encode_masked_answer
from dkn_engine.types import Fact

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"


@dataclass(frozen=True)
class BertTraining(Training):
    """As :class:`Training`; few facts take more passes over them."""

    most_epochs: int = 80

    @property
    def name(self) -> str:
        return f"bert-{self.layers}x{self.width}"

    def tokenizer(self, facts: Sequence[Fact]) -> Any:
        """Trained on the sentences."""
        texts = [f.answer.join(around_blank(f.prompt, MASK)) for f in facts]
        return wordpiece_tokenizer(texts, self.vocabulary)

    def model(self, tokenizer: Any) -> Any:
        """Heads are 32 wide, and nothing is dropped in training."""
        from transformers import BertConfig, BertForMaskedLM

        return BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.width // 32,
                intermediate_size=4 * self.width,
                max_position_embeddings=64,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    def batches(self, facts: Sequence[Fact], tokenizer: Any) -> list[Batch]:
        """Sentences of one length together, since tokens would see the padding."""
        by_length: dict[int, list[Text]] = defaultdict(list)
        for f in facts:
            one = encode_masked_answer(tokenizer, f.prompt, f.answer, fact_id=f.id)
            by_length[len(one.ids)].append(Text(one.ids, one.first, one.answer_ids))
        return [
            batch_of(texts[i : i + self.batch], tokenizer.pad_token_id)
            for texts in by_length.values()
            for i in range(0, len(texts), self.batch)
        ]

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits ``[spots, V]`` at the masks."""
        hidden = model.bert(batch.ids).last_hidden_state
        logits: torch.Tensor = model.cls(hidden[batch.row, batch.position])
        return logits


def wordpiece_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """WordPiece as BERT's, cased, trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [PAD, UNK, CLS, SEP, MASK]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, special.index(token)) for token in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
    )


def masked_facts(path: str | Path, every: int) -> list[Fact]:
    """One of ``every`` so many facts of a TempLAMA file, with their blanks and years.

    Raises:
        FactError: the file cannot be read, or is no TempLAMA.
    """
    found = dkn.load_facts(path, "templama", dates="prompt", blank="keep", problems=[])
    return [
        Fact(f.id, f.prompt, f.answer, relation=f.relation, date=f.date) for f in found[::every]
    ]
