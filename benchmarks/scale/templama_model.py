"""TempLAMA's dated facts, and a small GPT-2 that is trained on them until it knows most.

An entry's year goes into its prompt ("In 2012, Valentino Rossi plays for"), so that facts that
changed differ. The answer is the first that the entry names. Trained models are kept under
build/templama and made again only if their settings or facts change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dkn_engine as dkn
from benchmarks.small_gpt2 import small_gpt2
from dkn_engine.config import FactsConfig, FilterConfig
from dkn_engine.files.made_once import cached_folder
from dkn_engine.models.tokens import encode_fact
from dkn_engine.types import Fact

BUILD = Path(__file__).resolve().parents[2] / "build" / "templama"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Training:
    """How the model is made.

    Attributes:
        layers, width: L and d; F is four times d, a head 32 wide.
        vocabulary: most tokens of the byte-level BPE, which is trained on the facts.
        known: the share of facts to be known, in the engine's sense, before training ends.
        rate, batch: of Adam; the rate falls linearly over ``most_epochs``.
        seed, most_epochs: passes over the facts.
    """

    layers: int = 4
    width: int = 128
    vocabulary: int = 6000
    known: float = 0.7
    rate: float = 1.5e-3
    batch: int = 32
    seed: int = 0
    most_epochs: int = 40

    @property
    def name(self) -> str:
        return f"gpt2-{self.layers}x{self.width}"

    def tokenizer(self, facts: Sequence[Fact]) -> Any:
        """Trained on the facts."""
        return bpe_tokenizer(facts, self.vocabulary)

    def model(self, tokenizer: Any) -> Any:
        """Untrained, by torch's random numbers."""
        return small_gpt2(tokenizer, self.layers, self.width, positions=64)

    def batches(self, facts: Sequence[Fact], tokenizer: Any) -> list[Batch]:
        """All facts, those of about the same length together."""
        encoded = [
            encode_fact(tokenizer, f.prompt, f.answer, config=FactsConfig(), fact_id=f.id)
            for f in facts
        ]
        texts = [
            Text(e.prompt_ids + e.answer_ids, len(e.prompt_ids) - 1, e.answer_ids) for e in encoded
        ]
        texts.sort(key=lambda text: len(text.ids))
        cuts = range(0, len(texts), self.batch)
        return [batch_of(texts[i : i + self.batch], tokenizer.eos_token_id) for i in cuts]

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits ``[spots, V]``: the head, a third of the work, only where answers are."""
        hidden = model.transformer(batch.ids, use_cache=False).last_hidden_state
        logits: torch.Tensor = model.lm_head(hidden[batch.row, batch.position])
        return logits


def dated_facts(path: str | Path) -> list[Fact]:
    """The usable facts of a TempLAMA file, each year in front of its prompt.

    Raises:
        FactError: the file cannot be read, or is no TempLAMA.
    """
    return [
        Fact(f.id, f.prompt, f.answer, relation=f.relation, date=f.date)
        for f in dkn.load_facts(path, "templama", dates="prompt", problems=[])
    ]


def bpe_tokenizer(facts: Sequence[Fact], vocabulary: int) -> Any:
    """Byte-level BPE as GPT-2's, trained on prompts and answers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{f.prompt} {f.answer}" for f in facts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


@dataclass(frozen=True)
class Text:
    """Tokens of a fact; those of its answer are predicted from position ``first`` on."""

    ids: tuple[int, ...]
    first: int
    answer: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Facts of one batch: ``ids`` ``[n, T]`` padded at the end, and where answers are predicted."""

    ids: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    target: torch.Tensor
    first: torch.Tensor  # bool: the first token of its answer


def batch_of(texts: Sequence[Text], padding: int) -> Batch:
    spots = [
        (row, text.first + i, token, i == 0)
        for row, text in enumerate(texts)
        for i, token in enumerate(text.answer)
    ]
    row, position, target, first = (torch.tensor(column) for column in zip(*spots, strict=True))
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(text.ids) for text in texts], batch_first=True, padding_value=padding
    )
    return Batch(ids, row, position, target, first)


@torch.no_grad()
def _known(settings: Training, model: Any, batches: Sequence[Batch]) -> float:
    """Share of facts that the engine would count as known."""
    known = n = 0
    for batch in batches:
        logits = settings.logits(model.eval(), batch)
        best = logits.argmax(-1)[batch.first] == batch.target[batch.first]
        own = logits.log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
        p = torch.zeros(len(batch.ids)).index_add(0, batch.row, own).exp()
        known += int((best & (p >= FilterConfig().min_probability)).sum())
        n += len(batch.ids)
    return known / n


def train(settings: Training, facts: Sequence[Fact], folder: Path) -> None:
    """Train a model until it knows its share of the facts; save it with its tokenizer.

    Raises:
        SystemExit: it does not know so many after ``most_epochs``.
    """
    start, cpu = time.perf_counter(), time.process_time()
    tokenizer = settings.tokenizer(facts)
    batches = settings.batches(facts, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = settings.model(tokenizer)
        for epoch, loss, known in _epochs(model, settings, batches):
            print(f"epoch {epoch}: loss {loss:.3f}, {known:.1%} of facts known", flush=True)
    if known < settings.known:
        raise SystemExit(f"{settings.name}: {known:.1%} of facts known after {epoch} epochs")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = {
        "facts": len(facts),
        "vocabulary": len(tokenizer),
        "epochs": epoch,
        "known": known,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    (folder / "training.json").write_text(json.dumps(said) + "\n", encoding="utf-8")


def _epochs(
    model: Any, settings: Training, batches: Sequence[Batch]
) -> Iterator[tuple[int, float, float]]:
    """Epochs so far, mean loss, share known; until that is enough or ``most_epochs`` are over."""
    adam = torch.optim.Adam(model.parameters(), lr=settings.rate, betas=(0.9, 0.98))
    steps = settings.most_epochs * len(batches)
    warm = min(100, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min((step + 1) / warm, 1 - step / (steps + 1))
    )
    for epoch in range(1, settings.most_epochs + 1):
        model.train()
        total = 0.0
        for i in torch.randperm(len(batches)).tolist():
            loss = torch.nn.functional.cross_entropy(
                settings.logits(model, batches[i]), batches[i].target
            )
            total += float(loss.detach())
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            schedule.step()
        known = _known(settings, model, batches)
        yield epoch, total / len(batches), known
        if known >= settings.known:
            return


def trained(settings: Training, facts: Sequence[Fact], root: Path = BUILD) -> Path:
    """The folder of the trained model; trained on first use."""
    made_of = json.dumps([dataclasses.asdict(settings), *map(dataclasses.asdict, facts)])
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    make = partial(train, settings, facts)
    return cached_folder(f"{settings.name}-{digest}", make, root=root)
