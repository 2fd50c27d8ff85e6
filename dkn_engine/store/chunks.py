"""One chunk of a run directory: its four files, read only if they are what was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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

_FILE = re.compile(rf"(?:{'|'.join(TABLES)})-(\d{{5,}})\.parquet")
_FACTS = TABLES[-1]


class DamagedChunk(RunDirectoryError):
    """A chunk that is not as it was written; the run that wrote it computes it again.

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


def file_name(table: str, chunk: int) -> str:
    """Name of a chunk's file."""
    return f"{table}-{chunk:05d}.parquet"


def chunk_of(name: str) -> int | None:
    """The chunk of a file by its name; None if it is no chunk's file."""
    match = _FILE.fullmatch(name)
    if match is None:
        return None
    chunk = int(match[1])
    return chunk if f"-{chunk:05d}." in name else None


def own_chunks(place: Place, names: Iterable[str], plan: Plan) -> list[int]:
    """The chunks of a directory whose last file is there, in order.

    Raises:
        RunDirectoryError: there is a chunk that is not the directory's own.
    """
    found = []
    for name in names:
        chunk = chunk_of(name)
        if chunk is None or name != file_name(_FACTS, chunk):
            continue
        if chunk not in plan.chunks:
            raise RunDirectoryError(
                f"{place.at(name)} is of a chunk that the manifest does not have (shard "
                f"{plan.shard}, {plan.n_facts} facts); move it away, or merge the shards"
            )
        found.append(chunk)
    return sorted(found)


def is_whole(place: Place, plan: Plan, chunk: int) -> bool:
    """Whether a chunk is there as it was written; False if its last file is not there yet.

    Costs a digest of its files; those of a version that noted none are read and checked.

    Raises:
        DamagedChunk: it is there and damaged.
        RunDirectoryError: the system does not let a file be read.
    """
    files = _files(place, chunk)
    if files is None:
        return False
    if not _as_noted(place, plan, chunk, files):
        _tables(place, chunk, files)
    return True


def read_chunk(place: Place, manifest: Mapping[str, Any], chunk: int) -> dict[str, pa.Table] | None:
    """The tables of a chunk, every check passed; None if its last file is not there yet.

    Raises:
        DamagedChunk: it is damaged.
        RunDirectoryError: it is of another run, or the system does not let a file be read.
    """
    files = _files(place, chunk)
    if files is None:
        return None
    plan = plan_of(manifest)
    _as_noted(place, plan, chunk, files)
    tables = _tables(place, chunk, files)
    reason = _foreign(tables[_FACTS], plan, chunk, manifest["config_hash"])
    if reason is not None:
        raise RunDirectoryError(
            f"{place.at(file_name(_FACTS, chunk))}: {reason}; "
            "remove it and rerun the command that wrote the others"
        )
    return tables


def _files(place: Place, chunk: int) -> dict[str, bytes] | None:
    # The last file first: a chunk that is being written is not there.
    last = _read(place, file_name(_FACTS, chunk))
    if last is None:
        return None
    files = {}
    for table in TABLES[:-1]:
        name = file_name(table, chunk)
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


def _as_noted(place: Place, plan: Plan, chunk: int, files: Mapping[str, bytes]) -> bool:
    """Whether the files note their digests, which then are right."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    last = file_name(_FACTS, chunk)
    try:
        footer = pq.read_metadata(pa.BufferReader(files[_FACTS]))
        rows, noted = footer.num_rows, (footer.metadata or {}).get(digests.KEY)
        table = None if noted is None else digests.unlike(files, noted)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise DamagedChunk(place, last, "is cut short or damaged") from error
    if table is not None:
        raise DamagedChunk(place, file_name(table, chunk), "is cut short or damaged")
    if rows != plan.size(chunk):
        raise DamagedChunk(place, last, f"has {rows} facts instead of {plan.size(chunk)}")
    return noted is not None


def _tables(place: Place, chunk: int, files: Mapping[str, bytes]) -> dict[str, pa.Table]:
    tables = {t: _parsed(place, file_name(t, chunk), t, data) for t, data in files.items()}
    found = misfit(tables)
    if found is not None:
        raise DamagedChunk(place, file_name(found[0], chunk), found[1])
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


def _foreign(facts: pa.Table, plan: Plan, chunk: int, config_hash: str) -> str | None:
    """Why a chunk is not of the manifest's run, or None."""
    others = set(facts["config_hash"].to_pylist()) - {config_hash}
    if others:
        return f"belongs to the configuration {min(others)}, the manifest to {config_hash}"
    first = chunk // plan.chunks_per_window * plan.window
    last = min(first + plan.window, plan.n_facts) - 1
    for position in facts["position"].to_pylist():
        if not first <= position <= last:
            return f"has the fact of position {position}; it must hold some of {first} to {last}"
    return None
