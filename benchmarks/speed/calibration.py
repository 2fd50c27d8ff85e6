"""How the estimated error of adaptive attribution stands to the true one, over many facts.

``python -m benchmarks.speed.calibration --templama FILE --capitals FILE [--limit N]``, FILE being
TempLAMA's training set and ParaRel's capitals. The true error is that against 32 Gauss-Legendre
points a layer on the same paths; with the zero baseline, whose curves are too steep for them,
against the adaptive rule at a tolerance of 2e-5 (the small model alone: of the demo model it takes
minutes a fact). Models: the demo model, and a GPT-2 of four layers that is trained here on some
facts of TempLAMA. tests/attribution/test_calibration.py does the same with random models of several
layouts. A row a model, set of facts, baseline and tolerance in benchmarks/results/calibration.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dkn_engine as dkn
from benchmarks.rows import RESULTS, commit, write_csv
from benchmarks.scale.templama_model import Training, dated_facts, train
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.attribution.chunk_scores import ChunkScores
from dkn_engine.config import AttributionConfig, FactsConfig
from dkn_engine.files.csv import csv_text
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.forward.encoding import encode_sequence
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import mask_token_id
from dkn_engine.types import Fact

TOLERANCES = (1e-2, 1e-3)
DENSE: dict[str, dict[str, Any]] = {
    "masked": {"quadrature": "gauss_legendre", "n_steps": 32},
    "zero": {"tolerance": 2e-5, "max_points": 2048},
}
COLUMNS = (
    "model",
    "facts",
    "baseline",
    "tolerance",
    "n",
    "within",
    "error_median",
    "error_max",
    "estimate_median",
    "error_over_estimate_max",
    "points_per_layer",
    "commit",
)
PACKAGED = Path(dkn.__file__).parent / "facts" / "packaged"
FACTS_AT_ONCE = 8


def rows_of(
    names: tuple[str, str],
    model: Any,
    mask_id: int,
    sequences: Sequence[AnswerSequence],
    **how: Any,
) -> Iterator[tuple[Any, ...]]:
    """The table's rows of one model and set of facts (``names``), one a tolerance."""
    baseline = how.setdefault("baseline", "masked")
    truth = _scores(model, mask_id, sequences, AttributionConfig(**DENSE[baseline], **how))
    norm = _norms(truth)
    for tolerance in TOLERANCES:
        found = _scores(model, mask_id, sequences, AttributionConfig(tolerance=tolerance, **how))
        apart = [a.scores - b.scores.astype(np.float64) for a, b in zip(found, truth, strict=True)]
        error = np.concatenate([np.linalg.norm(x, axis=(1, 2)) for x in apart]) / norm
        estimate = np.concatenate([x.error for x in found]).astype(np.float64)
        # Of an answer of several tokens, the points of one.
        n_points = np.concatenate([x.n_points.mean(1) for x in found])
        first = how.get("answer_tokens") == "first"
        tokens = np.array([1 if first else len(s.targets) for s in sequences])
        yield (
            *names,
            baseline,
            tolerance,
            len(error),
            float((error <= tolerance).mean()),
            *(float(f"{x:.3g}") for x in (np.median(error), error.max(), np.median(estimate))),
            float(f"{(error / estimate).max():.3g}"),
            float(f"{(n_points / tokens).mean():.3g}"),
            commit(),
        )


def _scores(
    model: Any, mask_id: int, sequences: Sequence[AnswerSequence], config: AttributionConfig
) -> list[ChunkScores]:
    layout = find_layout(model)
    parts = [sequences[i : i + FACTS_AT_ONCE] for i in range(0, len(sequences), FACTS_AT_ONCE)]
    return [attribute_chunk(model, layout, part, config, mask_id=mask_id) for part in parts]


def _norms(found: Sequence[ChunkScores]) -> np.ndarray:
    """L2 norm of every fact's scores."""
    return np.concatenate([np.linalg.norm(x.scores.astype(np.float64), axis=(1, 2)) for x in found])


def encoded(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> list[AnswerSequence]:
    """The facts as tokens, with the default choices."""
    return [
        encode_sequence(model, tokenizer, f.prompt, f.answer, config=FactsConfig(), fact_id=f.id)
        for f in facts
    ]


def spread(facts: Sequence[Fact], n: int) -> list[Fact]:
    """``n`` of the facts, evenly over the file."""
    return list(facts[:: max(1, len(facts) // n)][:n])


def demo_cases(capitals: str, templama: str, limit: int) -> Iterator[tuple[Any, ...]]:
    """The demo model on packaged facts, capitals and TempLAMA, whose first tokens are taken."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    mask_id = mask_token_id(tokenizer)
    new = dkn.load_facts(PACKAGED / "demo_new.jsonl")
    sets: dict[str, tuple[Sequence[Fact], dict[str, Any]]] = {
        "demo": (spread(dkn.load_facts("demo"), limit), {}),
        "demo_new": (spread(new, limit), {}),
        "capitals": (spread(dkn.load_facts(capitals), limit), {}),
        "TempLAMA": (spread(dated_facts(templama), limit), {"answer_tokens": "first"}),
    }
    for name, (facts, how) in sets.items():
        sequences = encoded(model, tokenizer, facts)
        yield from rows_of(("demo", name), model, mask_id, sequences, **how)


def small_case(templama: str, limit: int) -> Iterator[tuple[Any, ...]]:
    """A GPT-2 of four layers that learnt the first 400 facts of TempLAMA, on these."""
    facts, settings = dated_facts(templama)[:400], Training(known=0.5)
    with tempfile.TemporaryDirectory() as folder:
        train(settings, facts, Path(folder))
        model, tokenizer = dkn.load_model(folder, device="cpu")
    sequences = encoded(model, tokenizer, spread(facts, limit))
    for baseline in ("masked", "zero"):
        yield from rows_of(
            (settings.name, "TempLAMA"),
            model,
            mask_token_id(tokenizer),
            sequences,
            baseline=baseline,
        )


def main() -> None:
    """Parse the options; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templama", required=True)
    parser.add_argument("--capitals", required=True)
    parser.add_argument("--limit", type=int, default=60, help="most facts of a set")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[Any, ...]] = []
    for case in (
        small_case(args.templama, args.limit),
        demo_cases(args.capitals, args.templama, args.limit),
    ):
        for row in case:
            rows.append(row)
            print(*row, flush=True)
            write_csv(RESULTS / "calibration.csv", csv_text(COLUMNS, rows))


if __name__ == "__main__":
    main()
