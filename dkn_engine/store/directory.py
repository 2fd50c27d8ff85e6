"""The run directory: chunks of results that are either whole or absent."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dkn_engine.config import Config
from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.files import TEMPORARY, DirectoryLock, write_files
from dkn_engine.store.schema import TABLES, to_parquet
from dkn_engine.types import Fact, FactResult

logger = logging.getLogger(__name__)

_OURS = re.compile(rf"(?:{'|'.join(TABLES)})-(\d{{5,}})\.parquet")


class RunDirectory:
    """A run's results on disk, written chunk by chunk and safe to kill at any moment.

    Facts are cut into chunks of ``config.facts_per_chunk``; chunk ``i`` is four Parquet files
    (``neurons-``, ``components-``, ``attribution-`` and, last, ``facts-{i:05d}.parquet``). Use
    :meth:`open`, best in a ``with`` statement.

    Attributes:
        path: the directory.
        manifest: what the run was made from, as plain data.
        n_chunks: number of chunks of the whole run.
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], facts: Sequence[Fact], lock: DirectoryLock
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.n_chunks = _n_chunks(manifest)
        self._facts = facts
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        config: Config,
        model_fingerprint: str,
        facts: Sequence[Fact],
        versions: Mapping[str, Any],
        model_name: str = "",
    ) -> RunDirectory:
        """Create a run directory, or continue one of the same configuration, model and facts.

        Leftovers of a killed run (temporary files, chunks that are not whole) are removed.

        Args:
            path: created with its parents if absent.
            config: its hash and values go into the manifest.
            model_fingerprint: identifies the weights.
            facts: all facts of the run, with unique ids.
            versions: of the packages that the numbers depend on; noted, not enforced.
            model_name: for people.

        Raises:
            RunDirectoryError: the directory belongs to another run (names what differs), another
                process writes it, or it cannot be one.
            UserError: two facts have the same id.
        """
        path = Path(path)
        _require_unique_ids(facts)
        new = manifests.build(
            config=config,
            model_name=model_name,
            model_fingerprint=model_fingerprint,
            facts=facts,
            versions=versions,
        )
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = DirectoryLock(path)
        except OSError as error:
            raise RunDirectoryError(
                f"run directory {path} cannot be written: {error.strerror or error}"
            ) from error
        try:
            manifest = _adopt(path, new)
            _clean(path, manifest)
        except BaseException:
            lock.release()
            raise
        return cls(path, manifest, facts, lock)

    def done_chunks(self) -> set[int]:
        """Chunks whose results are on disk, whole and readable."""
        return {i for i in range(self.n_chunks) if _is_done(self.path, self.manifest, i)}

    def chunk_facts(self, i: int) -> Sequence[Fact]:
        """The facts of chunk ``i``."""
        start, stop = _span(self.manifest, i)
        return self._facts[start:stop]

    def read_chunk(self, i: int) -> list[FactResult]:
        """The results of a done chunk, in the order of its facts."""
        return _read_chunk(self.path, i)

    def write_chunk(self, i: int, results: Sequence[FactResult]) -> None:
        """Put chunk ``i`` on disk; when this returns, no kill or power cut loses it.

        Args:
            i: from 0 to ``n_chunks - 1``.
            results: one for each fact of the chunk, in order.

        Raises:
            ValueError: the results do not belong to the chunk, or the directory is closed.
            OSError: the disk refuses.
        """
        if not self._lock.held:
            raise ValueError(f"run directory {self.path} is closed")
        expected = [fact.id for fact in self.chunk_facts(i)]
        got = [result.fact_id for result in results]
        if got != expected:
            raise ValueError(f"chunk {i} must hold the facts {expected}; got {got}")
        encoded = tables.encode(results, self.manifest["config_hash"])
        write_files(self.path, {_name(t, i): to_parquet(table) for t, table in encoded.items()})

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
    """Results in the order of the facts, one chunk in memory; chunks not done are left out.

    Works while a run writes the directory.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    path = Path(path)
    manifest = manifests.read(path)
    for i in range(_n_chunks(manifest)):
        if _is_done(path, manifest, i):
            yield from _read_chunk(path, i)


def read_results(path: str | Path) -> list[FactResult]:
    """All results of a run directory, in the order of the facts; see :func:`iter_results`."""
    return list(iter_results(path))


def count_done(path: str | Path) -> tuple[int, int]:
    """Number of facts whose results are on disk, and of all facts of the run.

    Raises:
        RunDirectoryError: ``path`` is not a run directory that this version can read.
    """
    path = Path(path)
    manifest = manifests.read(path)
    spans = (_span(manifest, i) for i in range(_n_chunks(manifest)) if _is_done(path, manifest, i))
    return sum(stop - start for start, stop in spans), int(manifest["facts"]["n"])


def _require_unique_ids(facts: Sequence[Fact]) -> None:
    seen: set[str] = set()
    for fact in facts:
        if fact.id in seen:
            raise UserError(f"fact ids must be unique; got {fact.id!r} twice")
        seen.add(fact.id)


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
    if old["versions"] == new["versions"]:
        return old
    logger.warning("%s is continued with other versions; its manifest lists both", path)
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "versions": new["versions"]}
    old["continued"] = [*old.get("continued", []), entry]
    write_files(path, {manifests.NAME: manifests.to_bytes(old)})
    return old


def _clean(path: Path, manifest: Mapping[str, Any]) -> None:
    """Remove what a killed run left: temporary files and chunks that are not whole."""
    done: dict[int, bool] = {}
    for file in sorted(path.iterdir()):
        name = file.name.removesuffix(TEMPORARY)
        match = _OURS.fullmatch(name)
        if file.name.endswith(TEMPORARY):
            if match or name in {manifests.NAME}:
                file.unlink()
        elif match:
            i = int(match[1])
            if i not in done:
                done[i] = i < _n_chunks(manifest) and _is_done(path, manifest, i)
            if not done[i]:
                logger.info("%s is not whole and is computed again", file)
                file.unlink()


def _n_chunks(manifest: Mapping[str, Any]) -> int:
    return -(-int(manifest["facts"]["n"]) // int(manifest["facts_per_chunk"]))


def _span(manifest: Mapping[str, Any], i: int) -> tuple[int, int]:
    """First fact of chunk ``i`` and the one after its last."""
    n, size = int(manifest["facts"]["n"]), int(manifest["facts_per_chunk"])
    if not 0 <= i < _n_chunks(manifest):
        raise ValueError(f"chunk must be from 0 to {_n_chunks(manifest) - 1}; got {i}")
    return i * size, min(n, (i + 1) * size)


def _name(table: str, i: int) -> str:
    return f"{table}-{i:05d}.parquet"


def _is_done(path: Path, manifest: Mapping[str, Any], i: int) -> bool:
    """Whether every table of a chunk can be read and ``facts`` has a row for each fact.

    Footers are enough: they lie at a file's end, so a truncated file has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    start, stop = _span(manifest, i)
    try:
        # The facts table first: for most chunks that are not done it is simply absent.
        rows = [pq.read_metadata(path / _name(t, i)).num_rows for t in reversed(TABLES)]
    except (OSError, pa.ArrowException):
        return False
    return bool(rows[0] == stop - start)


def _read_chunk(path: Path, i: int) -> list[FactResult]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, pa.Table] = {}
    for table in TABLES:
        file = path / _name(table, i)
        try:
            # Not read_table: it takes "name=value" folders of the path for columns.
            with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
                found[table] = parquet.read()
        except (OSError, pa.ArrowException) as error:
            raise RunDirectoryError(
                f"{file} cannot be read: {error}; remove it and rerun"
            ) from error
    return tables.decode(found)
