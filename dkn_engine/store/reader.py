"""Chunks of a run directory by number, in whichever files they are by now."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dkn_engine.errors import RunDirectoryError
from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.chunks import DamagedChunk, Part, is_whole, own_parts, read_files, read_part
from dkn_engine.store.places import Place

if TYPE_CHECKING:
    import pyarrow as pa

Tables = Mapping[str, "pa.Table"]
T = TypeVar("T")


class Reader:
    """The chunks that a run directory has, one compacted part in memory at a time.

    A chunk that moves into a compacted part after it was listed is read there.

    Args:
        place: of the directory.

    Raises:
        RunDirectoryError: the place is not a run directory that this version can read.

    Attributes:
        manifest, plan: of the run.
        parts: where each chunk is, in the order of the chunks.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self.manifest, self.parts = _located(place)
        self.plan = manifests.plan_of(self.manifest)
        self._held: tuple[Part, _Sliced] | None = None

    def done(self) -> set[int]:
        """The chunks that are as they were written; damaged ones are left out."""
        found: set[int] = set()
        for _, group in itertools.groupby(self.parts, self.parts.__getitem__):
            try:
                for _, chunks in self._use(list(group), self._is_whole):
                    found.update(chunks)
            except DamagedChunk:
                continue
        return found

    def rows(self, chunks: Iterable[int]) -> dict[str, pa.Table]:
        """Tables of those of the chunks that are there, rows in the order of the chunks.

        Args:
            chunks: ascending.

        Raises:
            RunDirectoryError: a chunk is damaged or of another run, or two have a fact in common.
        """
        pieces = []
        seen: dict[str | int, Part] = {}
        for (part, sliced), some in self._use(list(chunks), self._read):
            piece = sliced.of(some)
            for column in ("fact_id", "position"):
                for key in piece["facts"][column].to_pylist():
                    if seen.setdefault(key, part) != part:
                        raise RunDirectoryError(
                            f"{self._place.at(part.file('facts'))}: {column} {key!r} is in "
                            f"{seen[key].file('facts')}, too; remove one and rerun the command"
                        )
            pieces.append(piece)
        return tables.joined(pieces)

    def tables(self, chunks: Iterable[int]) -> dict[str, pa.Table]:
        """As :meth:`rows`, in the order of the facts."""
        return tables.in_order(self.rows(chunks))

    def files(self, chunk: int) -> dict[str, bytes]:
        """A chunk's files as a run writes them, by table; it must be there.

        Raises:
            RunDirectoryError: see :meth:`rows`; or it is not there.
        """

        def whole(part: Part) -> dict[str, bytes] | None:
            if part.compacted:
                return tables.to_files(self.rows([chunk]))
            return read_files(self._place, part)

        for files, _ in self._use([chunk], whole):
            return files
        raise RunDirectoryError(f"{self._place}: chunk {chunk} is not there any more")

    def _is_whole(self, part: Part) -> bool | None:
        return is_whole(self._place, self.plan, part) or None

    def _read(self, part: Part) -> tuple[Part, _Sliced] | None:
        if self._held is None or self._held[0] != part:
            self._held = None  # Never two in memory.
            found = read_part(self._place, self.manifest, part)
            if found is None:
                return None
            # Of a file's chunks only the last is short: those of a file came into the run together.
            self._held = part, _Sliced(found, part, self.plan.facts_per_chunk)
        return self._held

    def _use(
        self, chunks: Sequence[int], use: Callable[[Part], T | None]
    ) -> Iterator[tuple[T, list[int]]]:
        """What ``use`` gives of each part that holds some of the chunks, and which it holds.

        Args:
            chunks: ascending; those that are not there are left out.
            use: None if a part's last file is not there.
        """
        for part, group in itertools.groupby(chunks, self.parts.get):
            if part is None:
                continue
            some, damage = list(group), None
            try:
                found = use(part)
            except DamagedChunk as error:
                found, damage = None, error
            if found is not None:
                yield found, some
            elif self._have_moved(some, part):
                yield from self._use(some, use)
            elif damage is not None:
                raise damage

    def _have_moved(self, chunks: Sequence[int], part: Part) -> bool:
        """Look again where chunks are that are not, or not whole, where they were."""
        self.manifest, now = _located(self._place)
        moved = {chunk: now[chunk] for chunk in chunks if now.get(chunk, part) != part}
        self.parts |= moved
        return bool(moved)


def _located(place: Place) -> tuple[dict[str, Any], dict[int, Part]]:
    """The manifest of a run directory and the part that each of its chunks is in.

    A chunk that is in a file of its own is taken from there. While chunks move, a list of files
    may show neither; so it is made again until all are there or none has vanished.
    """
    before: dict[int, Part] | None = None
    while True:
        manifest = manifests.read(place)
        found = own_parts(place, listed(place), manifest)
        parts: dict[int, Part] = {}
        for part in sorted(found, key=lambda part: part.compacted):
            for chunk in part.chunks:
                parts.setdefault(chunk, part)
        plan = manifests.plan_of(manifest)
        is_all = sum(map(plan.size, parts)) == plan.n_own
        if is_all or (before is not None and parts.keys() >= before.keys()):
            return manifest, dict(sorted(parts.items()))
        before = parts


def listed(place: Place) -> list[str]:
    """Names in a run directory.

    Raises:
        RunDirectoryError: the system does not let it be listed.
    """
    try:
        return place.names()
    except OSError as error:
        raise RunDirectoryError(f"{place} cannot be listed: {error.strerror or error}") from error


class _Sliced:
    """A part's tables, from which those of some of its chunks are cut."""

    def __init__(self, whole: Tables, part: Part, facts_per_chunk: int) -> None:
        self._whole, self._first = whole, part.chunks[0]
        facts = whole["facts"]
        begins = np.arange(len(part.chunks) + 1) * facts_per_chunk
        begins[-1] = facts.num_rows
        self._begins: dict[str, NDArray[np.int64]] = {
            name: np.searchsorted(tables.fact_rows(table, facts), begins)
            for name, table in whole.items()
        }

    def of(self, chunks: Sequence[int]) -> dict[str, pa.Table]:
        """The tables of consecutive chunks."""
        first, stop = chunks[0] - self._first, chunks[-1] + 1 - self._first
        return {
            name: table.slice(begins[first], begins[stop] - begins[first])
            for (name, table), begins in zip(
                self._whole.items(), self._begins.values(), strict=True
            )
        }
