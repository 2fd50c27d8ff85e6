"""Complexity over a family of small GPT-2s that were trained on the same made-up facts.

Four sizes, each trained from one seed plainly and with two strengths of neuron dropout, which
takes a share of every MLP's neurons away at all positions of a sequence and so asks the rest to do
without them. All are trained until they know 200 facts, on two wordings of each, and asked half of
them. Writes benchmarks/results/model_family.csv and model_family_comparisons.csv. Trained models
are kept under build/model_family, with what was found in them, and made again only if their
settings change. Run it alone: ``python -m benchmarks.science.model_family``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dkn_engine as dkn
from benchmarks.small_gpt2 import small_gpt2
from dkn_engine.analysis.experiments.complexity.model_sizes import complexity_of_models, model_size
from dkn_engine.files.made_once import cached_folder
from dkn_engine.statistics.table import Table
from dkn_engine.statistics.table_files import comparisons_csv, rows_csv
from dkn_engine.types import Fact

RESULTS = Path(__file__).resolve().parents[1] / "results"
BUILD = Path(__file__).resolve().parents[2] / "build" / "model_family"
RELATIONS = ("colour", "city", "food", "animal", "tool")
N_SUBJECTS, N_ANSWERS = 40, 12  # subjects have every relation; each relation has its own answers
SPECIAL = ("<unk>", "</s>", "<mask>")
# The prompt is what facts are asked by; the other wording is their paraphrase.
WORDINGS = ("the {relation} of {subject} is", "{subject} has for {relation} the")


@dataclass(frozen=True)
class Training:
    """How one model of the family is made.

    Attributes:
        layers, width: L and d; F is four times d, a head 32 wide.
        dropout: share of neurons taken away.
        known, probability: the share of facts that must be known (rank 1), and the mean
            probability of the answers, before training ends.
        masked: share of prompts in which a word is masked, so that a mask means nothing known.
        seed, rate, most_steps: of Adam over all sequences at once.
    """

    layers: int
    width: int
    dropout: float = 0.0
    known: float = 0.95
    probability: float = 0.9
    masked: float = 0.25
    seed: int = 0
    rate: float = 2e-3
    most_steps: int = 6000

    @property
    def name(self) -> str:
        dropout = f"-dropout{self.dropout:g}" if self.dropout else ""
        return f"{self.layers}x{self.width}{dropout}"


SIZES = ((2, 64), (3, 96), (4, 128), (6, 192))
DROPOUTS = (0.0, 0.3, 0.6)


def made_up_facts(seed: int = 0) -> list[Fact]:
    """Every subject with an answer drawn for each relation: 200 facts."""
    drawn = random.Random(seed)
    first, second = WORDINGS
    facts = []
    for i in range(N_SUBJECTS):
        for relation in RELATIONS:
            names = {"relation": relation, "subject": f"subject{i}"}
            facts.append(
                Fact(
                    f"{relation}-{i}",
                    first.format(**names),
                    f"{relation}{drawn.randrange(N_ANSWERS)}",
                    subject=names["subject"],
                    relation=relation,
                    paraphrases=(second.format(**names),),
                )
            )
    return facts


def words_tokenizer(facts: Sequence[Fact]) -> Any:
    """Every word of the facts is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = (t for f in facts for t in (f.prompt, *f.paraphrases, f.answer))
    words = dict.fromkeys((*SPECIAL, *(w for t in texts for w in t.split())))
    vocabulary = {w: i for i, w in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", mask_token="<mask>"
    )


@contextmanager
def neuron_dropout(model: Any, share: float) -> Iterator[None]:
    """Take a share of every MLP's neurons away, in every sequence others, at all its positions."""

    def hook(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept = torch.rand(args[0].shape[0], 1, args[0].shape[2]) >= share
        return (args[0] * kept / (1 - share),)

    blocks = model.transformer.h if share else ()
    handles = [block.mlp.c_proj.register_forward_pre_hook(hook) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def train(settings: Training, facts: Sequence[Fact], folder: Path) -> None:
    """Train a model until it knows the facts, and save it with its tokenizer.

    Raises:
        SystemExit: it does not know them after ``most_steps``.
    """
    tokenizer = words_tokenizer(facts)
    prompts = [p for f in facts for p in (f.prompt, *f.paraphrases)]
    answers = [f.answer for f in facts for _ in (f.prompt, *f.paraphrases)]
    ids = torch.tensor(tokenizer(prompts)["input_ids"])  # all wordings have five words
    gold = torch.tensor(tokenizer(answers)["input_ids"])[:, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = small_gpt2(tokenizer, settings.layers, settings.width, positions=16)
        steps = _fit(model, settings, ids, gold, tokenizer.mask_token_id)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    known, probability = _knows(model, ids, gold)
    found = {"steps": steps, "known": known, "probability": probability}
    (folder / "training.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


def _fit(model: Any, settings: Training, ids: torch.Tensor, gold: torch.Tensor, mask: int) -> int:
    """Adam on the answers' cross-entropy; the number of steps it took."""
    adam = torch.optim.Adam(model.parameters(), lr=settings.rate)
    rows = torch.arange(len(ids))
    for step in range(settings.most_steps):
        if step % 25 == 0:
            known, probability = _knows(model, ids, gold)
            if known >= settings.known and probability >= settings.probability:
                return step
        hidden = torch.rand(len(ids)) < settings.masked
        place = torch.randint(ids.shape[1], (len(ids),))
        seen = ids.clone()
        seen[rows[hidden], place[hidden]] = mask
        with neuron_dropout(model.train(), settings.dropout):
            logits = model(seen).logits[:, -1]
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits, gold).backward()
        adam.step()
    raise SystemExit(f"{settings.name}: not known after {settings.most_steps} steps")


@torch.no_grad()
def _knows(model: Any, ids: torch.Tensor, gold: torch.Tensor) -> tuple[float, float]:
    """Share of prompts whose answer has rank 1, and the mean probability of the answers."""
    p = model.eval()(ids).logits[:, -1].softmax(-1)
    own = p.gather(1, gold[:, None])
    return float((p.argmax(-1) == gold).float().mean()), float(own.mean())


def trained(settings: Training, facts: Sequence[Fact], root: Path = BUILD) -> Path:
    """The folder of a trained model; trained on first use."""
    made_of = json.dumps([dataclasses.asdict(settings), *map(dataclasses.asdict, facts)])
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    make = partial(train, settings, facts)
    return cached_folder(f"{settings.name}-{digest}", make, root=root)


def compare(facts: Sequence[Fact], family: Sequence[Training]) -> dict[str, Table]:
    """Tables by name: sizes, each way of training apart; then the ways, size by size."""
    results, sizes = {}, {}
    for settings in family:
        start = time.perf_counter()
        folder = trained(settings, facts)
        model, tokenizer = dkn.load_model(folder, device="cpu")
        said = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        seconds = time.perf_counter() - start
        sizes[settings.name] = model_size(model)
        # Beside the models, so that a run that was stopped goes on.
        out = folder.with_name(f"{folder.name}-{len(facts)}-facts")
        results[settings.name] = dkn.find_dkns(model, tokenizer, facts, out=out)
        degenerate = sum(r.is_degenerate for r in results[settings.name])
        print(
            f"{settings.name}: {sizes[settings.name].parameters:,} parameters, "
            f"{said['steps']} steps, {said['known']:.0%} of prompts known, {degenerate} facts "
            f"degenerate; {seconds:.0f} s to train, "
            f"{time.perf_counter() - start - seconds:.0f} s to find DKNs",
            flush=True,
        )

    def table(some: Sequence[Training]) -> Table:
        names = [s.name for s in some]
        return complexity_of_models(
            facts, {n: results[n] for n in names}, {n: sizes[n] for n in names}
        )

    ways = {f"sizes, dropout {p:g}": [s for s in family if s.dropout == p] for p in DROPOUTS}
    for layers, width in SIZES:
        same = [s for s in family if (s.layers, s.width) == (layers, width)]
        ways[f"dropout at {same[0].name}"] = same
    return {name: table(some) for name, some in ways.items()}


def write(tables: Mapping[str, Table], folder: Path) -> None:
    """The tables' rows and comparisons, as ``dkn-engine analyze`` writes them."""
    for name, text in (("", rows_csv(tables)), ("_comparisons", comparisons_csv(tables))):
        (folder / f"model_family{name}.csv").write_text(text, encoding="utf-8")


def main() -> None:
    """Train what is missing, find DKNs, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=100, help="find DKNs of so many facts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts = made_up_facts()
    family = [Training(l, d, p) for p in DROPOUTS for l, d in SIZES]
    tables = compare(facts[: args.facts], family)
    write(tables, RESULTS)


if __name__ == "__main__":
    main()
