"""Groups that cover for one another beside NTC's components, on facts that neither was tuned on.

Facts are those of ``benchmarks.science.graphs.other_facts``, with the paraphrases that the demo
model knows, of which there must be three or more: the first two may be used for finding, all others
are held out and judge every method alike. Knowledge neurons are the default's, at most 60. Each
method's null is its own: NTC's, its groups with labels permuted within layers; the search's, the
search repeated among as many other neurons of the same layers.

Writes benchmarks/results/covering.csv, a row a fact and method, after every fact, and
covering_summary.csv, a row a method and figure; docs/covering_groups.md reads them. One thread:
``python -m benchmarks.science.covering PARAREL_BAGS [N facts]``.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import quantile_test

import dkn_engine as dkn
from benchmarks.rows import records_csv, write_csv
from benchmarks.science.graphs import other_facts
from dkn_engine.degeneracy.asked_together import together
from dkn_engine.degeneracy.choices import Located
from dkn_engine.degeneracy.covering_choice import covering_choice
from dkn_engine.degeneracy.edited_answers import Prompts
from dkn_engine.degeneracy.reference_facts import knows
from dkn_engine.forward.encoding import encode_sequences
from dkn_engine.models.layout import find_layout
from dkn_engine.statistics.intervals import wilson_share

RESULTS = Path(__file__).resolve().parents[1] / "results"
FINDING = 2  # paraphrases that may be used
_NAN = float("nan")
# By name the settings, and how many paraphrases are used.
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "NTC": ({}, 0),
    "covering": ({"topology.clustering": "covering"}, 0),
    "covering, 2 paraphrases": ({"topology.clustering": "covering"}, 2),
}


@dataclass(frozen=True)
class Judged:
    """What a method finds of one fact, and what is left of it on held-out paraphrases.

    ``seconds``: processor time of the search, without attribution and controls; NaN for NTC.
    """

    fact: str
    method: str
    neurons: int
    groups: int
    degenerate: bool
    holds: bool
    full_drop: float
    redundancy: float
    held_out: int
    held_out_single_drop: float
    held_out_full_drop: float
    held_out_redundancy: float
    null_draws: int
    null_passing: int
    seconds: float


def config_of(method: str) -> dkn.Config:
    """The settings of a method."""
    settings, n = METHODS[method]
    common = {
        "selection.max_neurons": 60,
        "selection.n_paraphrases": n,
        "selection.paraphrase_share": 0,
        "filter.n_random": 2,
        "filter.n_unrelated": 0,
    }
    return dkn.Config().set(common | settings)


class _Bench:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.layout = model, tokenizer, find_layout(model)

    def with_known_paraphrases(self, fact: dkn.Fact) -> dkn.Fact:
        """The fact with those of its paraphrases that the model answers."""
        if not fact.paraphrases:
            return fact
        known = knows(self._prompts(fact, fact.paraphrases), dkn.FilterConfig())
        kept = [p for p, is_known in zip(fact.paraphrases, known, strict=True) if is_known]
        return dataclasses.replace(fact, paraphrases=tuple(kept))

    def _prompts(self, fact: dkn.Fact, texts: Sequence[str]) -> Prompts:
        pairs = [(text, fact.answer) for text in texts]
        config = dkn.FactsConfig()
        sequences = encode_sequences(self.model, self.tokenizer, pairs, config=config)
        return Prompts(self.model, self.layout, sequences)

    def judged(self, fact: dkn.Fact, method: str) -> Judged:
        """A method's figures of a fact that has three known paraphrases or more."""
        config = config_of(method)
        n = config.selection.n_paraphrases
        kept = fact.paraphrases[:n] + fact.paraphrases[FINDING:]
        asked = dataclasses.replace(fact, paraphrases=kept)
        (found,) = dkn.find_dkns(self.model, self.tokenizer, [asked], config)
        held_out = found.controls.get("paraphrases")
        return Judged(
            fact.id,
            method,
            len(found.neurons),
            len(found.components),
            found.is_degenerate,
            bool(found.holds),
            found.full_drop,
            found.redundancy,
            len(fact.paraphrases) - FINDING,
            _NAN if held_out is None else held_out.single_drop,
            _NAN if held_out is None else held_out.full_drop,
            _NAN if held_out is None else held_out.redundancy,
            found.null_draws or 0,
            found.null_passing or 0,
            _NAN if method == "NTC" else self._seconds(fact, found, config),
        )

    def _seconds(self, fact: dkn.Fact, found: dkn.FactResult, config: dkn.Config) -> float:
        """Of the search alone, repeated."""
        n = config.selection.n_paraphrases
        prompts = self._prompts(fact, [fact.prompt])
        paraphrases = self._prompts(fact, fact.paraphrases[:n]) if n else None
        located = Located(fact, 0, found, range(n))
        started = time.process_time()
        together([covering_choice(prompts, located, config, paraphrases=paraphrases)])
        return time.process_time() - started


def summary(found: Sequence[Judged]) -> Iterator[dict[str, object]]:
    """A row a method and figure: shares with Wilson's interval, medians with an exact one.

    Medians are over the facts that have a DKN, but of seconds. Their interval holds for any
    distribution (``scipy.stats.quantile_test``).
    """
    for method in METHODS:
        own = [one for one in found if one.method == method]
        draws = sum(one.null_draws for one in own)
        for name, hits, n in (
            ("degenerate", sum(one.degenerate for one in own), len(own)),
            ("holds", sum(one.holds for one in own), len(own)),
            ("null passing", sum(one.null_passing for one in own), draws),
        ):
            share = wilson_share(hits, n)
            yield _row(method, name, share.mean, share.ci_low, share.ci_high, n)
        for name in MEDIANS:
            some = own if name == "seconds" else [one for one in own if one.degenerate]
            values = np.array([getattr(one, name) for one in some])
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            interval = quantile_test(values).confidence_interval(0.95)
            middle = float(np.median(values))
            yield _row(method, name, middle, interval.low, interval.high, len(values))


MEDIANS = (
    "full_drop",
    "redundancy",
    "held_out_single_drop",
    "held_out_full_drop",
    "held_out_redundancy",
    "seconds",
)


def _row(
    method: str, figure: str, value: float, low: float, high: float, n: int
) -> dict[str, object]:
    numbers = {"value": f"{value:.4g}", "ci_low": f"{low:.4g}", "ci_high": f"{high:.4g}"}
    return {"method": method, "figure": figure, **numbers, "n": n}


def main(path: str, limit: int | None = None) -> None:
    """Judge every method on the facts, and write both tables after each of them."""
    torch.set_num_threads(1)
    model, tokenizer = dkn.load_model("demo")
    bench = _Bench(model, tokenizer)
    facts = [bench.with_known_paraphrases(f) for f in other_facts(model, tokenizer, path)]
    facts = [fact for fact in facts if len(fact.paraphrases) > FINDING][:limit]
    print(f"{len(facts)} facts", file=sys.stderr)
    found: list[Judged] = []
    for fact in facts:
        found += [bench.judged(fact, method) for method in METHODS]
        write_csv(RESULTS / "covering.csv", records_csv([asdict(one) for one in found]))
        write_csv(RESULTS / "covering_summary.csv", records_csv(list(summary(found))))
        print(fact.id, *(one.holds for one in found[-len(METHODS) :]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
