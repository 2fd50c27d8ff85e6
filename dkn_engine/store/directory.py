"""The run directory: chunks of results that are either whole or absent."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dkn_engine.config import Config
from dkn_engine.dataset import Scan
from dkn_engine.errors import RunDirectoryError
from dkn_engine.plan import WHOLE, Plan, Shard, plan_for
from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.files import TEMPORARY, DirectoryLock, write_files
from dkn_engine.store.schema import TABLES
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_OURS = re.compile(rf"(?:{'|'.join(TABLES)})-(\d{{5,}})\.parquet")


class RunDirectory:
    """A run's results on disk, written chunk by chunk and safe to kill at any moment.

    Which facts are in a chunk is :mod:`dkn_engine.plan`'s business; chunk ``i`` is four Parquet
    files (``neurons-``, ``components-``, ``attribution-`` and, last, ``facts-{i:05d}.parquet``).
    Use :meth:`open`, best in a ``with`` statement.

    Attributes:
        path: the directory.
        manifest: what the run was made from, as plain data.
        plan: how many facts and chunks the run has.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], lock: DirectoryLock) -> None:
        self.path = path
        self.manifest = manifest
        self.plan = manifests.plan_of(manifest)
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        config: Config,
        model_fingerprint: str,
        facts: Scan,
        versions: Mapping[str, Any],
        model_name: str = "",
        shard: Shard = WHOLE,
    ) -> RunDirectory:
        """Create a run directory, or continue one of the same configuration, model and facts.

        Leftovers of a killed run (temporary files, chunks that are not whole) are removed.

        Args:
            path: created with its parents if absent.
            config: its hash and values go into the manifest.
            model_fingerprint: identifies the weights.
            facts: number and digest of all facts of the run.
            versions: of the packages that the numbers depend on; noted, not enforced.
            model_name: for people.
            shard: which chunks the directory is for.

        Raises:
            RunDirectoryError: the directory belongs to another run (names what differs), another
                process writes it, or it cannot be one.
        """
        new = manifests.build(
            config=config,
            model_name=model_name,
            model_fingerprint=model_fingerprint,
            plan=plan_for(facts.n, config.facts_per_chunk, shard),
            facts_digest=facts.digest,
            versions=versions,
        )
        return cls.adopt(path, new)

    @classmethod
    def adopt(cls, path: str | Path, manifest: dict[str, Any]) -> RunDirectory:
        """As :meth:`open`, from a manifest."""
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = DirectoryLock(path)
        except OSError as error:
            raise RunDirectoryError(
                f"run directory {path} cannot be written: {error.strerror or error}"
            ) from error
        try:
            adopted = _adopt(path, manifest)
            _clean(path, manifests.plan_of(adopted))
        except BaseException:
            lock.release()
            raise
        return cls(path, adopted, lock)

    def done_chunks(self) -> set[int]:
        """Chunks whose results are on disk, whole and readable."""
        return done_chunks(self.path, self.plan)

    def read_window(self, window: int) -> list[FactResult]:
        """The results of a window's done chunks, in the order of the facts."""
        return read_window(self.path, self.plan, window)

    def write_chunk(self, chunk: int, files: Mapping[str, bytes]) -> None:
        """Put a chunk on disk; when this returns, no kill or power cut loses it.

        Args:
            chunk: one of ``plan.chunks``.
            files: from :func:`dkn_engine.store.tables.chunk_files`.

        Raises:
            ValueError: the files are not a chunk's, or the directory is closed.
            OSError: the disk refuses.
        """
        if not self._lock.held:
            raise ValueError(f"run directory {self.path} is closed")
        if chunk not in self.plan.chunks:
            raise ValueError(f"chunk must be one of {self.plan.chunks}; got {chunk}")
        if tuple(files) != TABLES:
            raise ValueError(f"files must be {', '.join(TABLES)}; got {', '.join(files)}")
        rows, size = tables.n_rows(files["facts"]), self.plan.size(chunk)
        if rows != size:
            raise ValueError(f"chunk {chunk} must hold {size} facts; got {rows}")
        write_files(self.path, {file_name(t, chunk): data for t, data in files.items()})

    def close(self) -> None:
        """Let another writer in; safe to call twice."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def require_same_config(path: str | Path, config: Config) -> None:
    """Check before any work that a configuration may continue a directory, or begin one.

    Raises:
        RunDirectoryError: the directory belongs to another configuration (names the first key
            that differs), or its manifest cannot be read.
    """
    path = Path(path)
    if (path / manifests.NAME).exists():
        manifests.require_same_config(path, manifests.read(path), config.to_dict())


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a run directory as plain data.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    return manifests.read(Path(path))


def iter_results(path: str | Path) -> Iterator[FactResult]:
    """Results in the order of the facts, one window in memory; chunks not done are left out.

    Works while a run writes the directory.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    path = Path(path)
    plan = manifests.plan_of(manifests.read(path))
    for window in range(plan.n_windows):
        yield from read_window(path, plan, window)


def read_results(path: str | Path) -> list[FactResult]:
    """All results of a run directory, in the order of the facts; see :func:`iter_results`."""
    return list(iter_results(path))


def count_done(path: str | Path) -> tuple[int, int]:
    """Number of facts whose results are on disk, and of all facts of the run (or its shard).

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    path = Path(path)
    plan = manifests.plan_of(manifests.read(path))
    return sum(map(plan.size, done_chunks(path, plan))), plan.n_own


def done_chunks(path: Path, plan: Plan) -> set[int]:
    """The plan's chunks that are on disk."""
    return {i for i in plan.chunks if _is_done(path, plan, i)}


def read_window(path: Path, plan: Plan, window: int) -> list[FactResult]:
    """Results of a window's done chunks, in the order of the facts.

    Raises:
        RunDirectoryError: a chunk is damaged inside.
    """
    done = [i for i in plan.chunks_of(window) if _is_done(path, plan, i)]
    return tables.decode(tables.in_order([_read_chunk(path, i) for i in done]))


def read_positions(path: Path, chunk: int) -> list[int]:
    """Positions of a done chunk's facts among all facts of the run.

    Raises:
        RunDirectoryError: the chunk is damaged inside.
    """
    positions: list[int] = _read_chunk(path, chunk)["facts"]["position"].to_pylist()
    return positions


def file_name(table: str, chunk: int) -> str:
    """Name of a chunk's file."""
    return f"{table}-{chunk:05d}.parquet"


def _adopt(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The directory's manifest: the one there if it is of the same run, else the new one."""
    if not (path / manifests.NAME).exists():
        orphans = sorted(p.name for p in path.iterdir() if _OURS.fullmatch(p.name))
        if orphans:
            raise RunDirectoryError(
                f"{path} holds results ({orphans[0]}) but no {manifests.NAME}, so nobody knows "
                "what they were made from; give another directory"
            )
        write_files(path, {manifests.NAME: manifests.to_bytes(new)})
        return new
    old = manifests.read(path)
    manifests.require_same_run(path, old, new)
    manifests.require_same_shard(path, old, new)
    if old["versions"] == new["versions"]:
        return old
    logger.warning("%s is continued with other versions; its manifest lists both", path)
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "versions": new["versions"]}
    old["continued"] = [*old.get("continued", []), entry]
    write_files(path, {manifests.NAME: manifests.to_bytes(old)})
    return old


def _clean(path: Path, plan: Plan) -> None:
    """Remove what a killed run left: temporary files and chunks that are not whole."""
    chunks: dict[int, list[Path]] = {}
    for file in sorted(path.iterdir()):
        name = file.name.removesuffix(TEMPORARY)
        match = _OURS.fullmatch(name)
        if file.name.endswith(TEMPORARY):
            if match or name in {manifests.NAME}:
                file.unlink()
        elif match:
            chunks.setdefault(int(match[1]), []).append(file)
    for i, files in chunks.items():
        if i in plan.chunks and _is_done(path, plan, i):
            continue
        # A kill leaves whole files of a chunk without its last one; anything else is damage.
        broken = [f.name for f in files if tables.rows_of_file(f) is None]
        if broken:
            logger.warning(
                "%s: %s is cut short or damaged; its chunk is computed again", path, broken[0]
            )
        for file in files:
            file.unlink()


def _is_done(path: Path, plan: Plan, i: int) -> bool:
    """Whether every table of a chunk can be read and ``facts`` has a row for each fact.

    Footers are enough: they lie at a file's end, so a truncated file has none.
    """
    # The facts table first: for most chunks that are not done it is simply absent.
    *others, facts = (path / file_name(table, i) for table in TABLES)
    if tables.rows_of_file(facts) != plan.size(i):
        return False
    return all(tables.rows_of_file(other) is not None for other in others)


def _read_chunk(path: Path, i: int) -> dict[str, pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, pa.Table] = {}
    for table in TABLES:
        file = path / file_name(table, i)
        try:
            # Not read_table: it takes "name=value" folders of the path for columns.
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                found[table] = parquet.read()
        except (OSError, pa.ArrowException) as error:
            raise RunDirectoryError(
                f"{file} cannot be read: {error}; remove it and rerun"
            ) from error
    return found
