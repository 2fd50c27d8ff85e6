"""Attribution beside its peers on one fact of the demo model: time, error, points, memory bound.

Every provider's scores are compared with the engine's before anything is timed; a difference ends
the run. One thread, T = 12 prompt tokens, masked baseline, as in the design's table. Run it alone
on the machine (the published procedure takes minutes): ``python -m benchmarks.attribution``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import dkn_engine as dkn
from benchmarks import peers
from benchmarks.rows import Row, row, timed, write
from dkn_engine.attribution.chunk import ChunkScores, attribute_chunk
from dkn_engine.attribution.sequences import encode_sequence
from dkn_engine.config import AttributionConfig, FactsConfig
from dkn_engine.degeneracy.controls import subset_edits
from dkn_engine.degeneracy.edits import by_layer
from dkn_engine.degeneracy.forwards import change_at
from dkn_engine.degeneracy.prompts import Prompts
from dkn_engine.guest import hooks
from dkn_engine.layout import find_layout
from dkn_engine.tokens import mask_token_id

PROMPT, ANSWER = "In the far north of Europe, Copenhagen is the capital of", "Denmark"
N_STEPS = 20
LEFT = AttributionConfig(quadrature="riemann_left", n_steps=N_STEPS)
FACTS_AT_ONCE = 8


def build_case() -> peers.Case:
    """The fact and the model."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    sequence = encode_sequence(model, tokenizer, PROMPT, ANSWER, config=FactsConfig())
    return peers.Case(model, find_layout(model), sequence, mask_token_id(tokenizer))


def engine(case: peers.Case, config: AttributionConfig, copies: int = 1) -> ChunkScores:
    """The engine's own scores; ``copies`` of the fact in one chunk, as in a run."""
    sequences = [case.sequence] * copies
    return attribute_chunk(case.model, case.layout, sequences, config, mask_id=case.mask_id)


def require_equal(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """End the run unless scores agree to 1e-5 of the largest."""
    worst = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not worst <= 1e-5:
        raise SystemExit(f"{name} differs from the engine by {worst:.1e} of the largest score")


def equal_points(case: peers.Case) -> Iterator[Row]:
    """The same 20 left points by every provider."""
    name = f"left_{N_STEPS}_T{len(case.sequence.ids)}"
    expected = engine(case, LEFT).scores[0]
    providers: dict[str, Callable[[peers.Case, int], np.ndarray]] = {
        "released": peers.released,
        "released_lean": peers.lean,
        "captum": peers.captum,
    }
    for provider, run in providers.items():
        kept: list[np.ndarray] = []
        times = timed(lambda run=run, kept=kept: kept.append(run(case, N_STEPS)), 1, warm=False)
        require_equal(provider, kept[0], expected)
        yield row(name, provider, "seconds_per_fact", times)
    yield row(name, "dkn_engine", "seconds_per_fact", timed(lambda: engine(case, LEFT), 3))
    batched = [t / FACTS_AT_ONCE for t in timed(lambda: engine(case, LEFT, FACTS_AT_ONCE), 2)]
    yield row(name, f"dkn_engine_{FACTS_AT_ONCE}_facts", "seconds_per_fact", batched)


def adaptive(case: peers.Case) -> Iterator[Row]:
    """Time, points and measured error by tolerance, for both baselines."""
    for baseline in ("masked", "zero"):
        kind: Any = baseline
        dense = AttributionConfig(baseline=kind, tolerance=2e-5, max_points=4096)
        truth = engine(case, dense).scores[0].astype(np.float64)
        for tolerance in (1e-2, 1e-3, 1e-4):
            config = AttributionConfig(baseline=kind, tolerance=tolerance)
            yield from measured(f"adaptive_{baseline}_{tolerance:g}", case, config, truth)
        for n_steps in (10, 20):
            config = AttributionConfig(baseline=kind, quadrature="riemann_left", n_steps=n_steps)
            yield from measured(f"left_{baseline}_{n_steps}", case, config, truth)


def measured(
    name: str, case: peers.Case, config: AttributionConfig, truth: np.ndarray
) -> Iterator[Row]:
    """Rows of one configuration: error against the dense rule, points a layer, time a fact."""
    found = engine(case, config)
    error = np.linalg.norm(found.scores[0] - truth) / np.linalg.norm(truth)
    yield row(name, "dkn_engine", "relative_error", [float(error)])
    yield row(name, "dkn_engine", "points_per_layer", [float(found.n_points.mean())])
    yield row(name, "dkn_engine", "seconds_per_fact", timed(lambda: engine(case, config), 3))
    batched = [t / FACTS_AT_ONCE for t in timed(lambda: engine(case, config, FACTS_AT_ONCE), 2)]
    yield row(name, f"dkn_engine_{FACTS_AT_ONCE}_facts", "seconds_per_fact", batched)


def subsets(case: peers.Case) -> Iterator[Row]:
    """All subsets of 8 components of 6 neurons: one sweep against 256 patched forwards."""
    rng = np.random.default_rng(0)
    n_layers, width = case.layout.n_layers, case.layout.width
    flat = rng.choice(n_layers * width, size=(8, 6), replace=False)
    sets = [np.stack(np.divmod(f, width), axis=1).astype(np.int32) for f in flat]
    masks = np.arange(256)
    prompts = Prompts(case.model, case.layout, [case.sequence])
    found = prompts.probabilities(subset_edits(sets, masks))[:, 0]
    kept: list[np.ndarray] = []
    times = timed(lambda: kept.append(one_by_one(case, sets, masks)), 1, warm=False)
    require_equal("256 forwards", kept[0], found)
    yield row("subsets_2^8", "forwards", "seconds_per_fact", times)
    work = lambda: Prompts(case.model, case.layout, [case.sequence]).probabilities(  # noqa: E731
        subset_edits(sets, masks)
    )
    yield row("subsets_2^8", "dkn_engine", "seconds_per_fact", timed(work, 5))


@torch.no_grad()
def one_by_one(case: peers.Case, sets: list[np.ndarray], masks: np.ndarray) -> np.ndarray:
    """The answer's probability under each subset, a full forward each, last logits only."""
    found = []
    here = torch.zeros(1, len(case.sequence.ids), dtype=torch.bool)
    here[0, -1] = True
    for edit in subset_edits(sets, masks):
        handles = [
            case.layout.mlps[l].down.register_forward_pre_hook(change_at(one, here))
            for l, one in by_layer([edit]).items()
        ]
        with hooks(handles):
            logits = case.model(input_ids=case.ids, use_cache=False, logits_to_keep=1).logits
        found.append(float(logits[0, -1].double().softmax(-1)[case.target]))
    return np.array(found)


def gemm_peak() -> Iterator[Row]:
    """The machine's own rate on a product of the sweep's size, in GFLOP/s."""
    a, b = torch.randn(1024, 576), torch.randn(576, 1536)
    flop = 2 * 1024 * 576 * 1536
    times = timed(lambda: [a @ b for _ in range(20)], 7)
    yield row("gemm_1024x576x1536", "torch", "gflop_per_second", [20e-9 * flop / t for t in times])


def main() -> None:
    """Measure, print each row as it comes, write benchmarks/results/attribution.csv."""
    torch.set_num_threads(1)
    case = build_case()
    print(f"T = {len(case.sequence.ids)}", file=sys.stderr)
    rows: list[Row] = []
    for part in (gemm_peak(), adaptive(case), subsets(case), equal_points(case), gemm_peak()):
        for one in part:
            rows.append(one)
            text = f"{one.case:26} {one.provider:20} {one.metric:18} {one.median:.4g}"
            print(text, file=sys.stderr, flush=True)
    print(write("attribution.csv", rows))


if __name__ == "__main__":
    main()
