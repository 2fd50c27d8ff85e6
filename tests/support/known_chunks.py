"""Chunks that are computed once, for tests of how and where their results are written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from dkn_engine.run.stages import Stages
from dkn_engine.run.tasks import Task
from dkn_engine.types import FactResult

Known = dict[tuple[str, ...], list[FactResult]]


@contextlib.contextmanager
def computed_once(known: Known) -> Iterator[None]:
    """In the block, a chunk of facts that were computed before has the results that are known.

    Args:
        known: by the facts' ids; for runs of one model, configuration and list of facts only.
    """
    compute = Stages.of_task

    def looked_up(stages: Stages, task: Task) -> list[FactResult]:
        ids = tuple(fact.id for fact in task.facts)
        if ids not in known:
            known[ids] = compute(stages, task)
        return known[ids]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "of_task", looked_up)
        yield
