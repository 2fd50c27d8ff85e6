"""The run directory: chunks of results that are either whole or absent."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from dkn_engine.config import Config
from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.facts.scan import Scan
from dkn_engine.files.atomic import TEMPORARY
from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.chunks import (
    DamagedChunk,
    Part,
    is_whole,
    own_parts,
    part_at,
    part_of,
    single,
)
from dkn_engine.store.open_place import RunPath, place_of
from dkn_engine.store.places import Lock, Place
from dkn_engine.store.plan import WHOLE, Plan
from dkn_engine.store.reader import Reader, listed
from dkn_engine.store.schema import TABLES
from dkn_engine.types import FactResult

if TYPE_CHECKING:
    from dkn_engine.models.fingerprint import Identity

logger = logging.getLogger(__name__)

# Measured in docs/scale.md: from so many chunks on a compacted run is read faster, by so much
# that it pays; files of so many facts are read nearly as fast as one file.
MANY_CHUNKS = 64
FACTS_PER_FILE = 2048


class RunDirectory:
    """A run's results on disk, written chunk by chunk and safe to kill at any moment.

    Which facts are in a chunk is :mod:`dkn_engine.store.plan`'s business; chunk ``i`` is four
    Parquet files (``neurons-``, ``components-``, ``attribution-`` and, last,
    ``facts-{i:05d}.parquet``). Use :meth:`open`, best in a ``with`` statement.

    Attributes:
        place: where the directory is.
        manifest: what the run was made from, as plain data.
        plan: how many facts and chunks the run has.
    """

    def __init__(self, place: Place, lock: Lock) -> None:
        self.place, self._lock = place, lock
        self._reader = Reader(place)
        self.plan = self._reader.plan

    @property
    def manifest(self) -> Mapping[str, Any]:
        return self._reader.manifest

    @classmethod
    def open(
        cls,
        path: RunPath,
        *,
        config: Config,
        identity: Identity,
        facts: Scan,
        plan: Plan,
        versions: Mapping[str, Any],
        mask_token: str | None = None,
    ) -> RunDirectory:
        """Create a run directory, or continue one of the same run.

        Leftovers of a killed run (temporary files, chunks that are not whole) are removed. A chunk
        that is damaged is removed with a warning, to be computed again; one of another run that is
        whole is refused when it is read.

        Args:
            path: a path, or a URL that fsspec knows; created with its parents if absent.
            config: its hash and values go into the manifest.
            identity: of the model and its tokenizer.
            facts: number and digest of all facts of the run; of a directory of fewer facts, which
                are the first of them, the digest of those, too.
            plan: which chunks the directory is for, and what is in them.
            versions: of what the numbers depend on; noted, and told where a run has others.
            mask_token: for people, which token masked prompt tokens; None where none did.

        Raises:
            RunDirectoryError: the directory belongs to another run (names what differs), another
                process writes it, or it cannot be one.
        """
        new = manifests.build(config, identity, plan, facts.digest, versions, mask_token)
        run = cls.adopt(path, new, facts.digests)
        try:
            run._note(new["versions"])
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def adopt(
        cls, path: RunPath, manifest: dict[str, Any], digests: Mapping[int, str] | None = None
    ) -> RunDirectory:
        """As :meth:`open`, from a manifest and the digests of the first n facts, by n."""
        place = place_of(path)
        try:
            lock = place.lock()
        except OSError as error:
            raise RunDirectoryError(
                f"run directory {place} cannot be written: {error.strerror or error}"
            ) from error
        try:
            _clean(place, _adopt(place, manifest, digests or {}))
            return cls(place, lock)
        except BaseException:
            lock.release()
            raise

    def _note(self, versions: Mapping[str, Any]) -> None:
        """Say that the run goes on with other versions than before, and note them.

        A difference is no reason to refuse: most changes of code change no number, and only the
        user knows what the results are for.
        """
        others = manifests.other_versions(manifests.versions_of(self.manifest)[-1], versions)
        if others and self._is_finished:
            logger.warning(
                "%s was made with other versions (%s) and is not made again; another directory "
                "begins a new run",
                *(self.place, others),
            )
        elif others:
            logger.warning(
                "%s is continued with other versions (%s); its manifest lists both",
                *(self.place, others),
            )
            self._put_manifest(manifests.continued(self.manifest, versions))

    def done_chunks(self) -> set[int]:
        """Chunks whose results are on disk as they were written."""
        return set(self._reader.parts)

    def read_window(self, window: int) -> list[FactResult]:
        """The results of a window's done chunks, in the order of the facts.

        Raises:
            RunDirectoryError: a chunk was damaged since, or is of another run.
        """
        return tables.decode(self._reader.tables(self.plan.chunks_of(window)))

    def write_chunk(self, chunk: int, files: Mapping[str, bytes]) -> None:
        """Put a chunk on disk; when this returns, no kill or power cut loses it.

        Args:
            chunk: one of ``plan.chunks``.
            files: from :func:`dkn_engine.store.tables.chunk_files`.

        Raises:
            ValueError: the files are not a chunk's, or the directory is closed.
            OSError, RunDirectoryError: the disk refuses, or another run has taken the directory.
        """
        self._require_open()
        if chunk not in self.plan.chunks:
            raise ValueError(f"chunk must be one of {self.plan.chunks}; got {chunk}")
        if tuple(files) != TABLES:
            raise ValueError(f"files must be {', '.join(TABLES)}; got {', '.join(files)}")
        rows, size = tables.n_rows(files["facts"]), self.plan.size(chunk)
        if rows != size:
            raise ValueError(f"chunk {chunk} must hold {size} facts; got {rows}")
        self._write(single(chunk), files)

    def finish(self, many_chunks: int = MANY_CHUNKS) -> None:
        """Compact a whole run of many chunks, which is read faster so.

        A failure of the disk does not end it.
        """
        if self.plan.shard != WHOLE or self.plan.n_chunks < many_chunks or not self._is_finished:
            return
        try:
            self.compact()
        except (OSError, RunDirectoryError) as error:
            logger.warning("%s stays in many files: %s", self.place, error)

    def compact(self, facts_per_file: int = FACTS_PER_FILE) -> None:
        """Put the chunks of a finished run into few files of some thousand facts.

        A kill leaves each chunk in its own files or in the larger ones, and the next call goes on.
        Who reads meanwhile finds it in either. What is read stays equal, bit for bit.

        Args:
            facts_per_file: rounded to whole windows; what was begun goes on with its number.

        Raises:
            ValueError: the directory is closed.
            UserError: the run is not finished, or one shard of several.
            OSError, RunDirectoryError: the disk refuses, or a chunk is damaged.
        """
        self._require_open()
        if self.plan.shard != WHOLE or not self._is_finished:
            raise UserError(
                f"run directory {self.place} cannot be compacted before all chunks of the run are "
                "in it; finish it, or merge its shards"
            )
        if "chunks_per_file" not in self.manifest:
            windows = max(1, facts_per_file // self.plan.window)
            size = windows * self.plan.chunks_per_window
            self._put_manifest(manifests.compacted(self.manifest, size))
        chunk = 0
        while chunk < self.plan.n_chunks:
            part = part_at(chunk, self.manifest)
            chunk = part.chunks.stop
            singles = {self._reader.parts[i] for i in part.chunks} - {part}
            if singles:
                self._write(part, tables.to_files(self._reader.rows(part.chunks)))
            for name in _first_that_tells(f for one in singles for f in one.files):
                self.place.remove(name)

    @property
    def _is_finished(self) -> bool:
        return sum(map(self.plan.size, self._reader.parts)) == self.plan.n_own

    def _require_open(self) -> None:
        if not self._lock.held:
            raise ValueError(f"run directory {self.place} is closed")

    def _put_manifest(self, manifest: dict[str, Any]) -> None:
        self._lock.require()
        self.place.write({manifests.NAME: manifests.to_bytes(manifest)})
        self._reader.manifest = manifest

    def _write(self, part: Part, files: Mapping[str, bytes]) -> None:
        self._lock.require()
        self.place.write({part.file(table): data for table, data in files.items()})
        self._reader.parts |= dict.fromkeys(part.chunks, part)

    def close(self) -> None:
        """Let another writer in; safe to call twice."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_same_config(path: RunPath, config: Config) -> None:
    """Check before any work that a configuration may continue a directory, or begin one.

    Raises:
        RunDirectoryError: the directory belongs to another configuration (names the first key
            that differs), or its manifest cannot be read.
    """
    place = place_of(path)
    if manifests.exists(place):
        manifests.require_same_config(place, manifests.read(place), config.written())


def _adopt(place: Place, new: dict[str, Any], digests: Mapping[int, str]) -> dict[str, Any]:
    """The directory's manifest: the one there if it is of the same run, else the new one."""
    if not manifests.exists(place):
        orphans = sorted(name for name in listed(place) if part_of(name) is not None)
        if orphans:
            raise RunDirectoryError(
                f"{place} holds results ({orphans[0]}) but no {manifests.NAME}, so nobody knows "
                "what they were made from; give another directory"
            )
        place.write({manifests.NAME: manifests.to_bytes(new)})
        return new
    old = manifests.read(place)
    if old["facts"]["n"] < new["facts"]["n"] and (digests or not old["facts"]["n"]):
        before, old = old, manifests.with_more_facts(place, old, new, digests)
        manifests.require_same_run(place, old, new)
        manifests.require_same_shard(place, old, new)
        place.write({manifests.NAME: manifests.to_bytes(old)})
        added = old["facts"]["n"] - before["facts"]["n"]
        logger.info("%s takes %d more facts", place, added)
        return old
    manifests.require_same_run(place, old, new)
    manifests.require_same_shard(place, old, new)
    return old


def _clean(place: Place, manifest: Mapping[str, Any]) -> None:
    """Remove what a killed run left, and damaged parts."""
    names = listed(place)
    plan, whole = manifests.plan_of(manifest), dict[int, Part]()
    damages = []
    # Of a chunk that is in files of its own, too, the compacted ones stay.
    for part in sorted(own_parts(place, names, manifest), key=lambda p: (p.compacted, p.chunks[0])):
        try:
            if is_whole(place, plan, part):
                whole |= dict.fromkeys(part.chunks, part)
        except DamagedChunk as error:
            damages.append((part, error))
    for part, damage in damages:
        if not whole.keys() >= set(part.chunks):
            logger.warning(
                "%s: %s %s; its chunk is computed again", place, damage.file, damage.reason
            )
    for name in _leftovers(names, set(whole.values())):
        place.remove(name)


def _leftovers(names: Iterable[str], whole: set[Part]) -> list[str]:
    found = []
    for name in names:
        stem = name.removesuffix(TEMPORARY)
        part = part_of(stem)
        if stem != name:
            if part is not None or stem == manifests.NAME:
                found.append(name)
        elif part is not None and part not in whole:
            found.append(name)
    return _first_that_tells(found)


def _first_that_tells(names: Iterable[str]) -> list[str]:
    """Files to remove in order: of a part the one first whose presence says that it is there."""
    return sorted(names, key=lambda name: (not name.startswith(TABLES[-1]), name))
