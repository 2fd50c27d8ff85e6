"""Blocks, whole and behind a cached prefix, beside full forward passes: GPT-J's layout, by turns.

Random weights (time does not depend on them), 12 layers of d 768 and F 3,072, GPT-J's vocabulary,
one answer token behind 12 and behind 48 prompt tokens, zero baseline, 20 left points a layer, one
thread. Gradients and objectives are compared first. Writes benchmarks/results/blocks.csv:
``python -m benchmarks.speed.blocks``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
import transformers

from benchmarks.rows import Row, require_equal, row, write
from dkn_engine.attribution.block_sweep import Blocks
from dkn_engine.attribution.full_forwards import General
from dkn_engine.attribution.path_points import Evaluator
from dkn_engine.attribution.paths import Paths, Points
from dkn_engine.attribution.sites import site_activation
from dkn_engine.attribution.suffix_blocks import SuffixBlocks
from dkn_engine.forward.contexts import AnswerSequence, build_contexts
from dkn_engine.forward.prefill import prefill
from dkn_engine.models.guest import guest
from dkn_engine.models.layout import find_layout

LENGTHS, N_LAYERS, N_POINTS, TURNS = (12, 48), 12, 20, 3
ROWS_PER_BATCH = 1024
FORWARDS = "full forwards"


def gptj() -> transformers.GPTJForCausalLM:
    config = transformers.GPTJConfig(n_layer=N_LAYERS, n_embd=768, n_head=12, rotary_dim=64)
    torch.manual_seed(0)
    model: transformers.GPTJForCausalLM = transformers.GPTJForCausalLM(config).eval()
    return model


def evaluators(model: transformers.GPTJForCausalLM, length: int) -> dict[str, Evaluator]:
    """By name, all over the same paths."""
    layout = find_layout(model)
    ids = tuple(range(100, 100 + length))
    contexts = build_contexts([AnswerSequence(ids, length, (50,))], torch.device("cpu"))
    clean = prefill(model, layout, contexts)
    value, fixed = site_activation(layout, clean, "post")
    paths = Paths(layout, "post", value, torch.zeros_like(value), fixed, "delta", "auto")
    rest = (paths, "log_probability", ROWS_PER_BATCH)
    return {
        "blocks": SuffixBlocks(layout, contexts, clean, *rest),
        "whole blocks": Blocks(layout, contexts, clean, *rest),
        FORWARDS: General(model, contexts, *rest),
    }


def points() -> Points:
    layer = torch.arange(N_LAYERS).repeat_interleave(N_POINTS)
    alpha = (torch.arange(N_POINTS, dtype=torch.float64) / N_POINTS).repeat(N_LAYERS)
    return Points(torch.zeros_like(layer), layer, alpha)


def evaluated(evaluator: Evaluator) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, and the gradients and objectives of all points."""
    start = time.perf_counter()
    gradients, values, _ = evaluator.begin(points())
    return time.perf_counter() - start, gradients.numpy(), values.numpy()


def measured() -> Iterator[Row]:
    model = gptj()
    with guest(model, grad=True):
        for length in LENGTHS:
            every = evaluators(model, length)
            times: dict[str, list[float]] = {name: [] for name in every}
            for _ in range(TURNS):
                runs = {name: evaluated(evaluator) for name, evaluator in every.items()}
                for name, (seconds, *found) in runs.items():
                    times[name].append(seconds)
                    for one, expected in zip(found, runs[FORWARDS][1:], strict=True):
                        require_equal(name, one, expected, 1e-4)
            case = f"left_{N_POINTS}_T{length}"
            for name, every_turn in times.items():
                yield row(case, name, "seconds_per_fact", every_turn)
            for name in (n for n in every if n != FORWARDS):
                ratios = np.divide(times[FORWARDS], times[name]).tolist()
                yield row(case, f"{FORWARDS} / {name}", "ratio", ratios)
                print(f"T = {length}: {name} are {np.median(ratios):.1f} times as fast")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("blocks.csv", list(measured()))
