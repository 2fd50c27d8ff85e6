"""Chunks that are computed once, for tests of how and where their results are written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dkn_engine.run.stages import Stages
from dkn_engine.run.tasks import Task
from dkn_engine.types import Fact, FactResult

Known = dict[tuple[str, tuple[Fact, ...]], list[FactResult]]


@contextlib.contextmanager
def computed_once(known: Known) -> Iterator[None]:
    """In the block, a chunk of facts that were computed before has the results that are known.

    Args:
        known: by the configuration and by all that the facts say; for runs of one model over the
            same facts, in whatever form they are given (a run's others are controls of each).
    """
    compute = Stages.of_task

    def looked_up(stages: Stages, task: Task) -> list[FactResult]:
        chunk = stages.config.hash, tuple(task.facts)
        if chunk not in known:
            known[chunk] = compute(stages, task)
        return known[chunk]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "of_task", looked_up)
        yield
