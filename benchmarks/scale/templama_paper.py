"""TempLAMA on GPT-2 and LLaMA-2-7B, on 1, 8 and 64 GPUs: a calculation from counted operations.

Operations of a run at the default configuration are counted on the demo model, stage by stage, and
scaled by layers, widths, vocabulary and answer tokens. Peaks, assumed shares of them and launches
are those of ``benchmarks.kernels.estimate``. No GPU was used.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import dkn_engine as dkn
from benchmarks.kernels.estimate import (
    ANSWER,
    ARITHMETIC,
    BANDWIDTH,
    FACTS,
    FACTS_PER_CHUNK,
    LAUNCHES_PER_LAYER,
    MEASURED,
    MODELS,
    PEAK_16,
    PEAK_32,
    PEAK_BYTES,
    SECONDS_PER_LAUNCH,
    Shape,
)
from benchmarks.rows import Row, row
from benchmarks.scale.stage_clock import BEGINNINGS, STAGES, ByStage
from dkn_engine.config import Config, FactsConfig
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import find_layout
from dkn_engine.models.tokens import encode_fact
from dkn_engine.run.stages import Stages

KINDS = ("layers", "head")
GPUS = (1, 8, 64)
DEMO = "SmolLM2-135M"
COUNTED = "operations of 8 facts"


class Counts(ByStage, TorchDispatchMode):
    """Floating-point operations in products of matrices, and calls of layers, by stage.

    Args:
        head: weight of the output projection, whose products are counted apart.
    """

    def __init__(self, head: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flop: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[str] = Counter()
        self._head = head.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # The registry does not know the form that adds in place.
        name = torch.ops.aten.addmm if func is torch.ops.aten.addmm_.default else func
        count = flop_registry.get(getattr(name, "overloadpacket", name))
        if count is not None:
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            is_head = any(a.untyped_storage().data_ptr() == self._head for a in tensors)
            kind = "head" if is_head else "layers"
            self.flop[self.stage, kind] += count(*args, **(kwargs or {}), out_val=out)
        return out

    def called(self, *_: Any) -> None:
        """A hook that counts calls of layers."""
        self.calls[self.stage] += 1


def count(model: Any, tokenizer: Any, facts: list[dkn.Fact]) -> tuple[Counts, float]:
    """Operations of one chunk at the default configuration, and its mean number of components.

    Raises:
        SystemExit: the model does not know one.
    """
    stages, layout = Stages(model, tokenizer, facts, Config()), find_layout(model)
    # Made once a run, so it does not belong to a chunk.
    assert stages.reference is not None
    counts = Counts(model.get_output_embeddings().weight)
    handles = [layer.register_forward_pre_hook(counts.called) for layer in layout.layers]
    with hooks(handles), counts.told(BEGINNINGS), counts:
        results = stages.results(facts)
    unknown = [r.fact_id for r in results if r.status != "ok"]
    if unknown:
        raise SystemExit(f"the model does not know {unknown[0]!r}")
    return counts, sum(len(r.components) for r in results) / len(results)


def counted() -> Iterator[Row]:
    """Rows of what a fact of the demo model takes, by stage."""
    model, tokenizer = dkn.load_model("demo", device="cpu")
    # TempLAMA has no paraphrases either.
    facts = [
        dataclasses.replace(fact, paraphrases=())
        for fact in dkn.load_facts("demo")[:: 33 // FACTS_PER_CHUNK][:FACTS_PER_CHUNK]
    ]
    counts, components = count(model, tokenizer, facts)
    lengths = [
        len(encode_fact(tokenizer, f.prompt, f.answer, config=FactsConfig()).answer_ids)
        for f in facts
    ]
    yield row(COUNTED, DEMO, "answer_tokens", [sum(lengths) / len(facts)])
    yield row(COUNTED, DEMO, "components", [components])
    for stage in STAGES:
        for kind in KINDS:
            gflop = counts.flop[stage, kind] / len(facts) / 1e9
            yield row(COUNTED, DEMO, f"{stage}_{kind}_gflop", [gflop])
        passes = counts.calls[stage] / len(facts) / find_layout(model).n_layers
        yield row(COUNTED, DEMO, f"{stage}_passes", [passes])


@dataclass(frozen=True)
class Stage:
    """Of one fact: operations, bytes of weights, and launches."""

    flop: float
    bytes: float
    launches: float

    def seconds(self, m: Shape) -> float:
        """The longest of arithmetic, memory and the host's launches."""
        peak = PEAK_16 if m.size == 2 else PEAK_32
        arithmetic, memory = self.flop / (ARITHMETIC * peak), self.bytes / (BANDWIDTH * PEAK_BYTES)
        return max(arithmetic, memory, self.launches * SECONDS_PER_LAUNCH)


def scaled(figures: Mapping[str, float], m: Shape) -> dict[str, Stage]:
    """Each stage of one fact on another model.

    A layer's operations grow with its weights. Rows of attribution begin in every layer, so their
    number times the layers above grows with L(L+1)/2; all other rows pass through a share of the
    layers. The head sees the points of every layer, but the other stages' rows once.
    """
    base = MEASURED["SmolLM2-135M, float32"]
    tokens = ANSWER / figures["answer_tokens"]
    found = {}
    for stage in STAGES:
        deep = m.layers * (m.layers + 1) / (base.layers * (base.layers + 1))
        depth = deep if stage == "attribution" else m.layers / base.layers
        points = m.layers / base.layers if stage == "attribution" else 1.0
        layers = figures[f"{stage}_layers_gflop"] * depth * m.layer / base.layer
        head = figures[f"{stage}_head_gflop"] * points * m.d * m.v / (base.d * base.v)
        # Longer answers need more batches of rows: at most as many times more as there are tokens.
        passes = figures[f"{stage}_passes"] * (tokens if stage in {"lattice", "controls"} else 1)
        # A backward pass reads the weights and launches as often as the forward one.
        both = 2 if stage == "attribution" else 1
        weights = both * passes * (m.layers * m.layer + m.d * m.v) * m.size
        launches = both * passes * m.layers * LAUNCHES_PER_LAYER / 2
        found[stage] = Stage(tokens * (layers + head) * 1e9, weights, launches)
    return found


def calculated(figures: Mapping[str, float]) -> Iterator[Row]:
    """Rows of the table on paper, from the medians of :func:`counted`."""
    for name, m in MODELS.items():
        stages = scaled(figures, m)
        for stage, one in stages.items():
            yield row(name, "calculation", f"{stage}_gflop_per_fact", [one.flop / 1e9])
            yield row(name, "calculation", f"{stage}_milliseconds_per_fact", [1e3 * one.seconds(m)])
        seconds = sum(one.seconds(m) for one in stages.values())
        for gpus in GPUS:
            # The fullest GPU's chunks; a chunk is not divided.
            chunks = math.ceil(math.ceil(FACTS / FACTS_PER_CHUNK) / gpus)
            minutes = chunks * FACTS_PER_CHUNK * seconds / 60
            yield row(f"{name}, {gpus} GPUs", "calculation", "minutes", [minutes])


def paper() -> Iterator[Row]:
    """Count, then calculate."""
    figures = {}
    for one in counted():
        figures[one.metric] = one.median
        yield one
    yield from calculated(figures)


def main() -> None:
    """Print the rows."""
    torch.set_num_threads(1)
    for one in paper():
        print(f"{one.case:32} {one.metric:36} {one.median:.5g}")


if __name__ == "__main__":
    main()
