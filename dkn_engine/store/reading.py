"""Results of a run directory, complete or not; every reader goes through the same checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import RunDirectoryError
from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.chunks import DamagedChunk, file_name, is_whole, own_chunks, read_chunk
from dkn_engine.store.open_place import RunPath, place_of
from dkn_engine.store.places import Place
from dkn_engine.store.plan import Plan
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

    Later iterations give the same facts, also while a run writes the directory. One window is in
    memory at a time; chunks not done are left out.

    Args:
        path: of the run directory.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read; iterating
            also: a file in it is damaged or of another run; names the file.
    """

    def __init__(self, path: RunPath) -> None:
        self._place = place_of(path)
        self._manifest = manifests.read(self._place)
        self._plan = manifests.plan_of(self._manifest)
        self._chunks = list(own_chunks(self._place, listed(self._place), self._plan))

    def __iter__(self) -> Iterator[FactResult]:
        for _, some in itertools.groupby(self._chunks, lambda i: i // self._plan.chunks_per_window):
            yield from read_window(self._place, self._manifest, some)


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
    place = place_of(path)
    manifest = manifests.read(place)
    chunks = own_chunks(place, listed(place), manifests.plan_of(manifest))
    return joined(place, manifest, chunks)


def count_done(path: RunPath) -> tuple[int, int]:
    """Number of facts whose results are on disk, and of all facts of the run (or its shard).

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    place = place_of(path)
    plan = manifests.plan_of(manifests.read(place))
    return sum(map(plan.size, done_chunks(place, plan))), plan.n_own


def done_chunks(place: Place, plan: Plan) -> set[int]:
    """The plan's chunks that are on disk as they were written; damaged ones are left out."""
    done = set()
    for chunk in own_chunks(place, listed(place), plan):
        try:
            if is_whole(place, plan, chunk):
                done.add(chunk)
        except DamagedChunk:
            continue
    return done


def read_window(
    place: Place, manifest: Mapping[str, Any], chunks: Iterable[int]
) -> list[FactResult]:
    """Results of those of a window's chunks that are there, in the order of the facts.

    Raises:
        RunDirectoryError: a chunk is damaged or of another run.
    """
    return tables.decode(joined(place, manifest, chunks))


def read_positions(place: Place, manifest: Mapping[str, Any], chunk: int) -> list[int]:
    """Positions of a chunk's facts among all facts of the run.

    Raises:
        RunDirectoryError: the chunk is damaged or of another run.
    """
    found = read_chunk(place, manifest, chunk)
    positions: list[int] = [] if found is None else found["facts"]["position"].to_pylist()
    return positions


def listed(place: Place) -> list[str]:
    """Names in a run directory.

    Raises:
        RunDirectoryError: the system does not let it be listed.
    """
    try:
        return place.names()
    except OSError as error:
        raise RunDirectoryError(f"{place} cannot be listed: {error.strerror or error}") from error


def joined(place: Place, manifest: Mapping[str, Any], chunks: Iterable[int]) -> dict[str, pa.Table]:
    """Tables of several chunks, rows in the order of the facts.

    Raises:
        RunDirectoryError: a chunk is damaged or of another run, or two have a fact in common.
    """
    found = []
    seen: dict[str | int, int] = {}
    for chunk in chunks:
        of_chunk = read_chunk(place, manifest, chunk)
        if of_chunk is None:
            continue
        for column in ("fact_id", "position"):
            for key in of_chunk["facts"][column].to_pylist():
                if seen.setdefault(key, chunk) != chunk:
                    raise RunDirectoryError(
                        f"{place.at(file_name('facts', chunk))}: {column} {key!r} is in "
                        f"{file_name('facts', seen[key])}, too; remove one and rerun the command"
                    )
        found.append(of_chunk)
    return tables.in_order(found)
