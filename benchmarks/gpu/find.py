"""``find`` on a GPU beside captum and the published procedure on one fact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import dkn_engine as dkn
from benchmarks.find.published import after_scores
from benchmarks.gpu.random_llama import LLAMA_2_7B, TINY, known_facts, random_llama
from benchmarks.gpu.rows import Recorder
from benchmarks.speed import peers
from dkn_engine.config import AttributionConfig, Config, FactsConfig, FilterConfig, SelectionConfig
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import mask_token_id

N_STEPS = 20
# Scores of random weights have no few that stand out, and 0.05 is much for one of 32,000 tokens.
RANDOM_CONFIG = Config(
    selection=SelectionConfig(method="top_k", top_k=100), filter=FilterConfig(min_probability=0.0)
)
# The kernels by name, since on the CPU none runs by itself; interpreted ones are slow.
TINY_CONFIG = Config(
    attribution=AttributionConfig(
        backend="triton", baseline="zero", quadrature="riemann_left", n_steps=1
    ),
    selection=SelectionConfig(method="top_k", top_k=30),
    filter=FilterConfig(
        min_probability=0.0, n_random=1, n_regrouped=0, n_unrelated=0, fill_reference=False
    ),
)


@dataclass(frozen=True, eq=False)
class Given:
    """A model with facts that it knows, and how it is run."""

    model: Any
    tokenizer: Any
    facts: list[Any]
    config: Config


def demo(record: Recorder, device: str, *, tiny: bool) -> None:
    """The demo model and its packaged facts (a tiny model in their place, in a dry run)."""
    if tiny:
        given = _random(device, 1, tiny=True)
    else:
        model, tokenizer = dkn.load_model("demo", device=device)
        given = Given(model, tokenizer, dkn.load_facts("demo"), Config())
    whole_run(record, "demo model", given, device)
    if not tiny:  # where it would be the other part's once more
        one_fact(record, "demo model", given, device)


def llama(record: Recorder, device: str, *, tiny: bool) -> None:
    """A model of LLaMA-2-7B's shape in bfloat16 with random weights; answers of 1 and 4 tokens."""
    given = _random(device, 1, tiny=tiny)
    one_fact(record, "LLaMA-2-7B shape", given, device)
    whole_run(record, "LLaMA-2-7B shape, answers of 1 token", given, device)
    if not tiny:
        more = _facts(given.model, given.tokenizer, 4, 16)
        longer = Given(given.model, given.tokenizer, more, given.config)
        whole_run(record, "LLaMA-2-7B shape, answers of 4 tokens", longer, device)


def _random(device: str, n_tokens: int, *, tiny: bool) -> Given:
    dtype = torch.float32 if tiny else torch.bfloat16
    model, tokenizer = random_llama(TINY if tiny else LLAMA_2_7B, device, dtype)
    facts = _facts(model, tokenizer, n_tokens, 1 if tiny else 16)
    return Given(model, tokenizer, facts, TINY_CONFIG if tiny else RANDOM_CONFIG)


def _facts(model: Any, tokenizer: Any, n_tokens: int, n: int) -> list[Any]:
    prompts = [fact.prompt for fact in dkn.load_facts("demo")]
    return known_facts(model, tokenizer, prompts[: 2 * n], n_tokens)[:n]


def whole_run(record: Recorder, case: str, given: Given, device: str) -> None:
    """Rows of ``find`` over all facts, by the rows of a batch; the first run compiles kernels."""
    n, label = len(given.facts), f"{case}, {len(given.facts)} facts"
    with record.surviving(label, "dkn_engine"):
        record(label, "dkn_engine", "seconds_with_compilation", [seconds(_find(given), device)])
    for rows in ("auto", 4096) if n > 1 else ("auto",):
        with record.surviving(label, "dkn_engine"), peak(device) as most:
            kept: list[Any] = []
            run = _find(given, rows)
            taken = seconds(lambda kept=kept, run=run: kept.append(run()), device)  # type: ignore[misc]
            results = kept[0]
            suffix = "" if rows == "auto" else f"_rows_{rows}"
            record(label, "dkn_engine", f"find_seconds_per_fact{suffix}", [taken / n])
            record(label, "dkn_engine", f"peak_gib{suffix}", [most()])
    with record.surviving(label, "dkn_engine"):
        record(label, "dkn_engine", "known", [sum(r.status == "ok" for r in results)])
        known = [len(r.components) for r in results if r.status == "ok"]
        record(label, "dkn_engine", "components_per_known_fact", known or [0])
        work: Callable[[], object] = lambda: dkn.attribute(  # noqa: E731
            given.model, given.tokenizer, given.facts, given.config.attribution
        )
        taken = seconds(work, device)
        record(label, "dkn_engine", "attribution_seconds_per_fact", [taken / n])


def _find(given: Given, rows: Any = "auto") -> Callable[[], dkn.Results]:
    options = {**given.config.attribution.to_dict(), "rows_per_batch": rows}
    attribution = AttributionConfig.from_dict(options)
    config = Config.of(given.config, attribution=attribution)
    return lambda: dkn.find_dkns(given.model, given.tokenizer, given.facts, config)


def one_fact(record: Recorder, case: str, given: Given, device: str) -> None:
    """Rows of one fact: the engine at the peers' points, adaptive, and whole; and the peers."""
    n_steps = N_STEPS if device != "cpu" else 2
    peer, fact = single(given)
    backend = given.config.attribution.backend
    left = AttributionConfig(quadrature="riemann_left", n_steps=n_steps, backend=backend)
    label = f"{case}, 1 fact, {n_steps} left points"
    kept: dict[str, np.ndarray] = {}

    def engine() -> None:
        scores = dkn.attribute(given.model, given.tokenizer, [fact], left)
        kept["dkn_engine"] = np.asarray(scores.scores[0], dtype=np.float64)

    works: dict[str, Callable[[], object]] = {
        "dkn_engine": engine,
        "captum": lambda: kept.update(captum=peers.captum(peer, n_steps)),
        "released": lambda: kept.update(released=peers.released(peer, n_steps)),
    }
    for name, work in works.items():
        with record.surviving(label, name):
            if device != "cpu":
                work()  # compiles, allocates
            repeats = range(2 if device != "cpu" else 1)
            record(label, name, "attribution_seconds", [seconds(work, device) for _ in repeats])
            if name != "dkn_engine":
                theirs, ours = kept[name].astype(np.float64), kept["dkn_engine"]
                apart = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
                record(label, name, "scores_apart_from_engine", [float(apart)])
    with record.surviving(label, "published"):
        record(label, "published", "find_seconds", [published_seconds(peer, n_steps, device)])
    with record.surviving(label, "dkn_engine"):
        alone = Given(given.model, given.tokenizer, [fact], given.config)
        record(label, "dkn_engine", "find_seconds", [seconds(_find(alone), device)])


def published_seconds(peer: peers.Case, n_steps: int, device: str) -> float:
    """Seconds of the published procedure, all stages, at its own site."""
    case = peers.Case(peer.model, peer.layout, peer.sequence, peer.mask_id, "pre")

    def work() -> None:
        after_scores(case, peers.released(case, n_steps, multiply_by="activation"))

    return seconds(work, device)


def single(given: Given) -> tuple[peers.Case, Any]:
    """The first fact whose answer is one token.

    Raises:
        ValueError: there is none.
    """
    for fact in given.facts:
        sequence = encode_sequence(
            given.model, given.tokenizer, fact.prompt, fact.answer, config=FactsConfig()
        )
        if len(sequence.targets) == 1:
            mask = mask_token_id(given.tokenizer)
            return peers.Case(given.model, find_layout(given.model), sequence, mask), fact
    raise ValueError(f"none of {len(given.facts)} answers is a single token")


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock of one call, until the card has done it."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@contextmanager
def peak(device: str) -> Iterator[Callable[[], float]]:
    """Gives a function that says the most GiB of the card that tensors took in the block."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    yield lambda: torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else float("nan")
