"""What a fact should cost on one H100, from rows and operations counted on a small model.

Nothing here is measured on a GPU. :class:`Counted` holds what ``benchmarks/find/engine.py`` counts
in one chunk of the demo model; a :class:`Plan` says how many facts a chunk has and how many rows
climb the layers together. Peaks, assumed shares of them and launches are those of
``benchmarks.kernels.estimate``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.find.engine import STAGES
from benchmarks.kernels.estimate import (
    ANSWER,
    ARITHMETIC,
    BANDWIDTH,
    LAUNCHES_PER_LAYER,
    MEASURED,
    PEAK_16,
    PEAK_32,
    PEAK_BYTES,
    SECONDS_PER_LAUNCH,
    Shape,
    auto_rows,
)

FILTER_ROWS = 1024  # of a climb without gradients, with rows_per_batch="auto"
BASE = MEASURED["SmolLM2-135M, float32"]


@dataclass(frozen=True)
class Plan:
    """How a run is batched.

    Attributes:
        facts: of a chunk.
        rows: most rows of a climb; None for what ``rows_per_batch="auto"`` takes on a CPU: as many
            as fit a GiB with their gradients, 1,024 without. On a GPU with much free memory it
            takes 4,096 with gradients.
    """

    facts: int = 8
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class Counted:
    """Of one chunk of the demo model, by stage.

    Attributes:
        facts: of the chunk.
        answer_tokens: their mean number.
        flop: in the layers' products and in the head's.
        calls: how often a layer ran.
        climbs: rows in the last layer of each climb without gradients.
        backward: of each climb with them.
        one_by_one: the filter takes one fact at a time, so that larger chunks share no climbs.
    """

    facts: int
    answer_tokens: float
    flop: Mapping[str, tuple[float, float]]
    calls: Mapping[str, int]
    climbs: Mapping[str, Sequence[int]]
    backward: Mapping[str, Sequence[int]]
    one_by_one: bool = False

    @classmethod
    def of(cls, answer: Mapping[str, Any], *, one_by_one: bool) -> Self:
        """From the answer of the engine's process."""
        flop, climbs = answer["flop"], answer["climbs"]
        return cls(
            answer["facts"],
            answer["answer_tokens"],
            {s: (flop.get(f"{s}_layers", 0.0), flop.get(f"{s}_head", 0.0)) for s in STAGES},
            {s: answer["calls"].get(s, 0) for s in STAGES},
            {s: climbs.get(s, []) for s in STAGES},
            {s: climbs.get(f"{s}_backward", []) for s in STAGES},
            one_by_one,
        )


@dataclass(frozen=True)
class Stage:
    """Of one fact: operations, bytes of weights read, launches, climbs."""

    flop: float
    bytes: float
    launches: float
    climbs: float

    def seconds(self, m: Shape) -> float:
        """The longest of arithmetic, memory and the host's launches."""
        return max(self.parts(m))

    def parts(self, m: Shape) -> tuple[float, float, float]:
        """Seconds of arithmetic, memory and launches."""
        peak = PEAK_16 if m.size == 2 else PEAK_32
        return (
            self.flop / (ARITHMETIC * peak),
            self.bytes / (BANDWIDTH * PEAK_BYTES),
            self.launches * SECONDS_PER_LAUNCH,
        )


def calculated(counted: Counted, m: Shape, plan: Plan) -> dict[str, Stage]:
    """Each stage of one fact on another model.

    A layer's operations grow with its weights, all with the answer's tokens. Rows of attribution
    begin in every layer, so their number times the layers above grows with L(L+1)/2 and the head
    sees L times as many; other rows pass through a share of the layers. Every climb reads the
    weights of the layers that it passes and of the head, and launches their operations; one with
    gradients does so twice.
    """
    tokens = ANSWER / counted.answer_tokens
    stages = {}
    for stage in STAGES:
        layers, head = counted.flop[stage]
        deeper = m.layers / BASE.layers
        points = deeper if stage == "attribution" else 1.0
        deep = points * (m.layers + 1) / (BASE.layers + 1) if stage == "attribution" else deeper
        flop = layers * deep * m.layer / BASE.layer + head * points * m.d * m.v / (BASE.d * BASE.v)
        forward, both = (
            climbs(stage, rows, counted, tokens * points, m, plan)
            for rows in (counted.climbs[stage], counted.backward[stage])
        )
        passes = (forward + 2 * both) * depth(counted, stage)
        weights = passes * (m.layers * m.layer + m.d * m.v) * m.size
        launches = passes * m.layers * LAUNCHES_PER_LAYER / 2
        stages[stage] = Stage(tokens * flop / counted.facts, weights, launches, forward + both)
    return stages


def climbs(
    stage: str, rows: Sequence[int], counted: Counted, more: float, m: Shape, plan: Plan
) -> float:
    """Climbs a fact.

    Args:
        rows: of each climb that was counted, without a limit to them.
        more: how many times as many rows a climb has on the other model.
    """
    if stage == "clean":  # a pass over all prompts of about one length
        return len(rows) / plan.facts
    if stage == "filter" and counted.one_by_one:
        return sum(math.ceil(n * more / FILTER_ROWS) for n in rows) / counted.facts
    most = plan.rows or (FILTER_ROWS if stage == "filter" else auto_rows(m))
    larger = plan.facts / counted.facts
    return sum(math.ceil(n * more * larger / most) for n in rows) / plan.facts


def depth(counted: Counted, stage: str) -> float:
    """The share of layers that a climb passes through; the rest are below its first change."""
    n = len(counted.climbs[stage]) + len(counted.backward[stage])
    return counted.calls[stage] / (n * BASE.layers) if n else 0.0


def milliseconds(stages: Mapping[str, Stage], m: Shape) -> float:
    """Of one fact, all stages."""
    return 1e3 * sum(stage.seconds(m) for stage in stages.values())
