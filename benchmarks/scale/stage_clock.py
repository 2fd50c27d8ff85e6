"""Which stage of the engine is at work: told by wrapping the functions in which stages begin."""

from __future__ import annotations

import functools
import importlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

STAGES = ("clean", "attribution", "lattice", "controls")
# What lies in none of the others belongs to the clean pass and the rest of a run.
BEGINNINGS = {
    "attribution": ["dkn_engine.run.stages:attribute_chunk"],
    "lattice": ["dkn_engine.degeneracy.functional_filter:_lattices"],
    "controls": ["dkn_engine.degeneracy.functional_filter:_measured"],
}
# Parts that cut across the stages: the head under edits, and Python's bookkeeping.
PARTS = {
    "head": ["dkn_engine.degeneracy.edits_by_rows:answer_probability"],
    "edits": [
        "dkn_engine.degeneracy.controls:subset_edits",
        "dkn_engine.degeneracy.controls:random_sets",
        "dkn_engine.degeneracy.edited_answers:require_inside",
        "dkn_engine.degeneracy.edits_by_rows:by_layer",
    ],
    "reading_off": [
        "dkn_engine.degeneracy.control_subsets:drops",
        "dkn_engine.degeneracy.functional_filter:drops",
        "dkn_engine.degeneracy.functional_filter:degenerate_family",
    ],
    "tables": ["dkn_engine.run.stages:chunk_files"],
}


class ByStage:
    """Knows the stage; in nested ones the outermost."""

    stage = STAGES[0]

    def switch(self, stage: str) -> None:
        """Another stage begins."""
        self.stage = stage

    def in_stage(self, stage: str, function: Any) -> Any:
        """The function, with a stage of its own."""

        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> Any:
            before = self.stage
            self.switch(stage if before == STAGES[0] else before)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(before)

        return told

    @contextmanager
    def told(self, beginnings: Mapping[str, Sequence[str]]) -> Iterator[None]:
        """Follow the engine inside the block."""
        with ExitStack() as stack:
            for stage, places in beginnings.items():
                for place in places:
                    module, name = place.split(":")
                    function = getattr(importlib.import_module(module), name)
                    stack.enter_context(patch(f"{module}.{name}", self.in_stage(stage, function)))
            yield


class StageClock(ByStage):
    """Processor seconds of this process by stage."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._since = time.process_time()

    def switch(self, stage: str) -> None:
        now = time.process_time()
        self.seconds[self.stage] += now - self._since
        self._since = now
        super().switch(stage)
