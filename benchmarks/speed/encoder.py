"""An encoder of BERT-base's shape beside the published procedure, by turns.

Random weights (time does not depend on them), one fact of 12 tokens with one mask, one thread, 20
left points from zero. The published procedure (Dai et al. 2022, arXiv 2104.08696) takes the layers
one by one: a pass for what the activation is, then one over a batch of all points. Scores are
compared first. Beside them the engine's default quadrature, which takes as many points as its
tolerance asks for. Writes benchmarks/results/encoder.csv: ``python -m benchmarks.speed.encoder``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.rows import Row, require_equal, row, write
from dkn_engine.attribution.chunk import attribute_chunk
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.contexts import AnswerSequence
from dkn_engine.models.layout import find_layout

LENGTH, N_POINTS, TURNS, TARGET = 12, 20, 3, 2000
MASK, AT = 103, 5

Scores = NDArray[Any]


def bert() -> Any:
    torch.manual_seed(0)
    model: Any = transformers.BertForMaskedLM(transformers.BertConfig())
    return model.eval()


def sentence() -> AnswerSequence:
    ids = [101, *range(1000, 1000 + LENGTH - 2), 102]
    ids[AT] = MASK
    return AnswerSequence(tuple(ids), LENGTH, (TARGET,), masks=(AT,))


def published(model: Any) -> Scores:
    """``[L, F]``, a layer at a time."""
    ids = torch.tensor([sentence().ids])
    rows = []
    for layer in model.bert.encoder.layer:
        seen: list[Tensor] = []
        handle = layer.intermediate.register_forward_hook(
            lambda _m, _a, output, seen=seen: seen.append(output[0, AT].detach())
        )
        with torch.no_grad():
            model(input_ids=ids)
        handle.remove()
        points = (torch.arange(N_POINTS)[:, None] / N_POINTS * seen[0]).requires_grad_(True)

        def scaled(_m: Any, _a: Any, output: Tensor, points: Tensor = points) -> Tensor:
            output = output.clone()
            output[:, AT] = points
            return output

        handle = layer.intermediate.register_forward_hook(scaled)
        p = model(input_ids=ids.expand(N_POINTS, -1)).logits[:, AT].softmax(-1)[:, TARGET]
        handle.remove()
        (gradients,) = torch.autograd.grad(p.sum(), points)
        rows.append((gradients.sum(0) / N_POINTS * seen[0]).numpy())
    return np.stack(rows)


def engine(model: Any, **options: Any) -> Scores:
    """``[L, F]``, all layers in one climb."""
    config = AttributionConfig(**{"baseline": "zero", **options})
    found = attribute_chunk(model, find_layout(model), [sentence()], config)
    assert found.path == "blocks"
    scores: Scores = found.scores[0]
    return scores


def measured() -> Iterator[Row]:
    model = bert()
    equal = {"quadrature": "riemann_left", "n_steps": N_POINTS}
    ways: dict[str, Callable[[], Scores]] = {
        "published": lambda: published(model),
        "blocks, same points": lambda: engine(model, **equal),
        "blocks, adaptive at 1e-3": lambda: engine(model, tolerance=1e-3),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        scores = {}
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way()
            times[name].append(time.perf_counter() - start)
        require_equal("blocks", scores["blocks, same points"], scores["published"], 1e-3)
    case = f"bert_base_T{LENGTH}"
    for name, seconds in times.items():
        yield row(case, name, "seconds_per_fact", seconds)
        ratios = np.divide(times["published"], seconds).tolist()
        if name != "published":
            yield row(case, f"published / {name}", "ratio", ratios)
            print(f"{name}: the published procedure takes {np.median(ratios):.1f} times as long")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("encoder.csv", list(measured()))
