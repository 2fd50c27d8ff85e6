"""Four files of a run directory that belong together, read only if they are what was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import RunDirectoryError
from dkn_engine.store import digests
from dkn_engine.store.checks import misfit, other_columns, with_later_columns
from dkn_engine.store.manifest import plan_of
from dkn_engine.store.places import Place
from dkn_engine.store.plan import Plan
from dkn_engine.store.schema import TABLES

if TYPE_CHECKING:
    import pyarrow as pa

_FILE = re.compile(rf"({'|'.join(TABLES)})-(\d{{5,}})(?:-(\d{{5,}}))?\.parquet")
_FACTS = TABLES[-1]


class DamagedChunk(RunDirectoryError):
    """A part that is not as it was written; the run that wrote it computes it again.

    Attributes:
        file: the name of the file that is damaged.
        reason: in what way, to be read after the name.
    """

    def __init__(self, place: Place, file: str, reason: str) -> None:
        self.file, self.reason = file, " ".join(reason.split())
        super().__init__(
            f"{place.at(file)}: {self.reason}; "
            "the command that wrote it, given again, computes its facts again"
        )


@dataclass(frozen=True)
class Part:
    """The chunks that are in one file a table: one as it was computed, or many put together.

    Attributes:
        chunks: consecutive ones.
        compacted: whether they were put together (also where it is one, at a run's end).
    """

    chunks: range
    compacted: bool = False

    def file(self, table: str) -> str:
        """Name of its file of a table."""
        first, last = self.chunks[0], self.chunks[-1]
        return f"{table}-{first:05d}{f'-{last:05d}' if self.compacted else ''}.parquet"

    @property
    def files(self) -> list[str]:
        """Names of its files; the first is the one whose presence says that all are there."""
        return [self.file(table) for table in reversed(TABLES)]


def single(chunk: int) -> Part:
    """A chunk as it is computed."""
    return Part(range(chunk, chunk + 1))


def part_at(chunk: int, manifest: Mapping[str, Any]) -> Part:
    """The part that a chunk is in once a run is compacted, by its manifest."""
    size, batch = manifest["chunks_per_file"], plan_of(manifest).batch_of(chunk)
    first = chunk - (chunk - batch.start) % size
    return Part(range(first, min(first + size, batch.stop)), compacted=True)


def part_of(name: str) -> Part | None:
    """The part of a file by its name; None if it is no part's file."""
    match = _FILE.fullmatch(name)
    if match is None:
        return None
    table, first, last = match.groups()
    part = Part(range(int(first), int(last or first) + 1), compacted=last is not None)
    return part if part.chunks and part.file(table) == name else None


def own_parts(place: Place, names: Iterable[str], manifest: Mapping[str, Any]) -> set[Part]:
    """The parts of a directory whose last file is there.

    Raises:
        RunDirectoryError: there is a part that is not the directory's own.
    """
    plan, parts = plan_of(manifest), set()
    for name in names:
        part = part_of(name)
        if part is None or name != part.file(_FACTS):
            continue
        first = part.chunks[0]
        if part.compacted:
            is_own = "chunks_per_file" in manifest and part == part_at(first, manifest)
        else:
            is_own = first in plan.chunks
        if not is_own:
            raise RunDirectoryError(
                f"{place.at(name)} is of a chunk that the manifest does not have (shard "
                f"{plan.shard}, {plan.n_facts} facts); move it away, or merge the shards"
            )
        parts.add(part)
    return parts


def is_whole(place: Place, plan: Plan, part: Part) -> bool:
    """Whether a part is there as it was written; False if its last file is not there yet.

    Costs a digest of its files; those of a version that noted none are read and checked.

    Raises:
        DamagedChunk: it is there and damaged.
        RunDirectoryError: the system does not let a file be read.
    """
    files = read_files(place, part)
    if files is None:
        return False
    if not _as_noted(place, plan, part, files):
        _tables(place, part, files)
    return True


def read_part(place: Place, manifest: Mapping[str, Any], part: Part) -> dict[str, pa.Table] | None:
    """The tables of a part, every check passed; None if its last file is not there yet.

    Raises:
        DamagedChunk: it is damaged.
        RunDirectoryError: it is of another run, or the system does not let a file be read.
    """
    files = read_files(place, part)
    if files is None:
        return None
    plan = plan_of(manifest)
    _as_noted(place, plan, part, files)
    tables = _tables(place, part, files)
    reason = _foreign(tables[_FACTS], plan, part, manifest["config_hash"])
    if reason is not None:
        raise RunDirectoryError(
            f"{place.at(part.file(_FACTS))}: {reason}; "
            "remove it and rerun the command that wrote the others"
        )
    return tables


def read_files(place: Place, part: Part) -> dict[str, bytes] | None:
    """A part's files by table, unchecked; None if its last file is not there yet.

    Raises:
        DamagedChunk: another file is not there.
        RunDirectoryError: the system does not let a file be read.
    """
    # The last file first: a part that is being written is not there.
    last = _read(place, part.file(_FACTS))
    if last is None:
        return None
    files = {}
    for table in TABLES[:-1]:
        name = part.file(table)
        data = _read(place, name)
        if data is None:
            raise DamagedChunk(place, name, "is not there")
        files[table] = data
    return files | {_FACTS: last}


def _read(place: Place, name: str) -> bytes | None:
    try:
        return place.read(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunDirectoryError(
            f"{place.at(name)} cannot be read: {error.strerror or error}"
        ) from error


def _as_noted(place: Place, plan: Plan, part: Part, files: Mapping[str, bytes]) -> bool:
    """Whether the files note their digests, which then are right."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    last = part.file(_FACTS)
    try:
        footer = pq.read_metadata(pa.BufferReader(files[_FACTS]))
        rows, noted = footer.num_rows, (footer.metadata or {}).get(digests.KEY)
        table = None if noted is None else digests.unlike(files, noted)
    except (OSError, ValueError, pa.ArrowException, RecursionError, MemoryError) as error:
        raise DamagedChunk(place, last, "is cut short or damaged") from error
    if table is not None:
        raise DamagedChunk(place, part.file(table), "is cut short or damaged")
    size = sum(map(plan.size, part.chunks))
    if rows != size:
        raise DamagedChunk(place, last, f"has {rows} facts instead of {size}")
    return noted is not None


def _tables(place: Place, part: Part, files: Mapping[str, bytes]) -> dict[str, pa.Table]:
    tables = {t: _parsed(place, part.file(t), t, data) for t, data in files.items()}
    found = misfit(tables)
    if found is not None:
        raise DamagedChunk(place, part.file(found[0]), found[1])
    return tables


def _parsed(place: Place, file: str, name: str, data: bytes) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as parquet:
            reason = other_columns(parquet.schema_arrow, name)
            if reason is not None:
                raise DamagedChunk(place, file, reason)
            table = parquet.read(use_threads=False)  # Threads cost more than such files.
        table.validate(full=True)
    except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise DamagedChunk(place, file, f"cannot be read: {error}") from error
    return with_later_columns(table.replace_schema_metadata(), name)


def _foreign(facts: pa.Table, plan: Plan, part: Part, config_hash: str) -> str | None:
    """Why a part is not of the manifest's run, or None."""
    others = set(facts["config_hash"].to_pylist()) - {config_hash}
    if others:
        return f"belongs to the configuration {min(others)}, the manifest to {config_hash}"
    for row, position in enumerate(facts["position"].to_pylist()):
        chunk = part.chunks[row // plan.facts_per_chunk]
        own = plan.facts_of(plan.window_of(chunk))
        if position not in own:
            some = f"{own.start} to {own.stop - 1}"
            return f"has the fact of position {position}; it must hold some of {some}"
    return None
