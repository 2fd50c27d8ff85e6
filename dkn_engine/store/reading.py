"""Results of a run directory, complete or not; every reader goes through the same checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.open_place import RunPath, place_of
from dkn_engine.store.reader import Reader
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    import pyarrow as pa


def read_manifest(path: RunPath) -> dict[str, Any]:
    """The manifest of a run directory as plain data.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    return manifests.read(place_of(path))


class Snapshot:
    """The results that are on disk now, read anew each time that they are iterated over.

    Later iterations give the same facts, also while a run writes the directory or puts its chunks
    into fewer files. One window of results is in memory at a time; chunks not done are left out.

    Args:
        path: of the run directory.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read; iterating
            also: a file in it is damaged or of another run; names the file.
    """

    def __init__(self, path: RunPath) -> None:
        self._reader = Reader(place_of(path))
        self._chunks = list(self._reader.parts)

    def __iter__(self) -> Iterator[FactResult]:
        per_window = self._reader.plan.chunks_per_window
        for _, window in itertools.groupby(self._chunks, lambda chunk: chunk // per_window):
            yield from tables.decode(self._reader.tables(window))


def iter_results(path: RunPath) -> Iterator[FactResult]:
    """Results in the order of the facts; see :class:`Snapshot`, whose first iteration this is."""
    yield from Snapshot(path)


def read_results(path: RunPath) -> list[FactResult]:
    """All results of a run directory, in the order of the facts; see :func:`iter_results`."""
    return list(iter_results(path))


def read_tables(path: RunPath) -> dict[str, pa.Table]:
    """The four tables of a run directory, rows in the order of the facts.

    Raises:
        RunDirectoryError: see :func:`iter_results`.
    """
    reader = Reader(place_of(path))
    return reader.tables(reader.parts)


def count_done(path: RunPath) -> tuple[int, int]:
    """Number of facts whose results are on disk, and of all facts of the run (or its shard).

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    reader = Reader(place_of(path))
    return sum(map(reader.plan.size, reader.done())), reader.plan.n_own
