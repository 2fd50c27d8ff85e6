"""Run directories: results on disk that survive a kill at any moment and resume bit-equal."""

from __future__ import annotations

from dkn_engine.store.directory import (
    RunDirectory,
    count_done,
    iter_results,
    read_manifest,
    read_results,
    require_same_config,
)
from dkn_engine.store.merging import merge

__all__ = [
    "RunDirectory",
    "count_done",
    "iter_results",
    "merge",
    "read_manifest",
    "read_results",
    "require_same_config",
]
