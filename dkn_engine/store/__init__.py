"""Run directories: results on disk that survive a kill at any moment and resume bit-equal."""

from __future__ import annotations

from dkn_engine.store.directory import RunDirectory, require_same_config
from dkn_engine.store.merging import merge
from dkn_engine.store.open_place import RunPath, as_folder, place_of
from dkn_engine.store.reading import (
    Snapshot,
    count_done,
    iter_results,
    load_results,
    read_manifest,
    read_results,
    read_tables,
)

__all__ = [
    "RunDirectory",
    "RunPath",
    "Snapshot",
    "as_folder",
    "count_done",
    "iter_results",
    "load_results",
    "merge",
    "place_of",
    "read_manifest",
    "read_results",
    "read_tables",
    "require_same_config",
]
