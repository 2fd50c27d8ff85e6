"""The run directory: chunks of results that are either whole or absent."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from dkn_engine.config import Config
from dkn_engine.errors import RunDirectoryError
from dkn_engine.facts.scan import Scan
from dkn_engine.files.atomic import TEMPORARY
from dkn_engine.store import manifest as manifests
from dkn_engine.store import tables
from dkn_engine.store.chunks import DamagedChunk, chunk_of, file_name, is_whole, own_chunks
from dkn_engine.store.open_place import RunPath, place_of
from dkn_engine.store.places import Lock, Place
from dkn_engine.store.plan import WHOLE, Plan, Shard, plan_for
from dkn_engine.store.reading import listed, read_window
from dkn_engine.store.schema import TABLES
from dkn_engine.types import FactResult

logger = logging.getLogger(__name__)


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

    def __init__(
        self, place: Place, manifest: Mapping[str, Any], lock: Lock, done: set[int]
    ) -> None:
        self.place = place
        self.manifest = manifest
        self.plan = manifests.plan_of(manifest)
        self._lock, self._done = lock, done

    @classmethod
    def open(
        cls,
        path: RunPath,
        *,
        config: Config,
        model_fingerprint: str,
        facts: Scan,
        versions: Mapping[str, Any],
        model_name: str = "",
        traits: Mapping[str, Any] | None = None,
        mask_token: str | None = None,
        shard: Shard = WHOLE,
    ) -> RunDirectory:
        """Create a run directory, or continue one of the same run.

        Leftovers of a killed run (temporary files, chunks that are not whole) are removed. A chunk
        that is damaged is removed with a warning, to be computed again; one of another run that is
        whole is refused when it is read.

        Args:
            path: a path, or a URL that fsspec knows; created with its parents if absent.
            config: its hash and values go into the manifest.
            model_fingerprint: identifies the weights.
            facts: number and digest of all facts of the run.
            versions: of what the numbers depend on; noted, and told where a run has others.
            model_name: for people.
            traits: of model and tokenizer; see :class:`dkn_engine.models.fingerprint.Identity`.
            mask_token: for people, which token masked prompt tokens; None where none did.
            shard: which chunks the directory is for.

        Raises:
            RunDirectoryError: the directory belongs to another run (names what differs), another
                process writes it, or it cannot be one.
        """
        new = manifests.build(
            config=config,
            model_name=model_name,
            model_fingerprint=model_fingerprint,
            mask_token=mask_token,
            plan=plan_for(facts.n, config.facts_per_chunk, shard),
            facts_digest=facts.digest,
            versions=versions,
            traits=traits,
        )
        run = cls.adopt(path, new)
        try:
            run._note(new["versions"])
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def adopt(cls, path: RunPath, manifest: dict[str, Any]) -> RunDirectory:
        """As :meth:`open`, from a manifest."""
        place = place_of(path)
        lock = place.lock()
        try:
            adopted = _adopt(place, manifest)
            done = _clean(place, manifests.plan_of(adopted))
        except BaseException:
            lock.release()
            raise
        return cls(place, adopted, lock, done)

    def _note(self, versions: Mapping[str, Any]) -> None:
        """Say that the run goes on with other versions than before, and note them.

        A difference is no reason to refuse: most changes of code change no number, and only the
        user knows what the results are for.
        """
        others = manifests.other_versions(manifests.versions_of(self.manifest)[-1], versions)
        if others and len(self._done) == len(self.plan.chunks):
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
            self.manifest = manifests.continued(self.manifest, versions)
            self.place.write({manifests.NAME: manifests.to_bytes(self.manifest)})

    def done_chunks(self) -> set[int]:
        """Chunks whose results are on disk as they were written."""
        return set(self._done)

    def read_window(self, window: int) -> list[FactResult]:
        """The results of a window's done chunks, in the order of the facts.

        Raises:
            RunDirectoryError: a chunk was damaged since, or is of another run.
        """
        mine = [i for i in self.plan.chunks_of(window) if i in self._done]
        return read_window(self.place, self.manifest, mine)

    def write_chunk(self, chunk: int, files: Mapping[str, bytes]) -> None:
        """Put a chunk on disk; when this returns, no kill or power cut loses it.

        Args:
            chunk: one of ``plan.chunks``.
            files: from :func:`dkn_engine.store.tables.chunk_files`.

        Raises:
            ValueError: the files are not a chunk's, or the directory is closed.
            OSError, RunDirectoryError: the disk refuses, or another run has taken the directory.
        """
        if not self._lock.held:
            raise ValueError(f"run directory {self.place} is closed")
        if chunk not in self.plan.chunks:
            raise ValueError(f"chunk must be one of {self.plan.chunks}; got {chunk}")
        if tuple(files) != TABLES:
            raise ValueError(f"files must be {', '.join(TABLES)}; got {', '.join(files)}")
        rows, size = tables.n_rows(files["facts"]), self.plan.size(chunk)
        if rows != size:
            raise ValueError(f"chunk {chunk} must hold {size} facts; got {rows}")
        self._lock.require()
        self.place.write({file_name(t, chunk): data for t, data in files.items()})
        self._done.add(chunk)

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


def require_same_config(path: RunPath, config: Config) -> None:
    """Check before any work that a configuration may continue a directory, or begin one.

    Raises:
        RunDirectoryError: the directory belongs to another configuration (names the first key
            that differs), or its manifest cannot be read.
    """
    place = place_of(path)
    if manifests.exists(place):
        manifests.require_same_config(place, manifests.read(place), config.to_dict())


def _adopt(place: Place, new: dict[str, Any]) -> dict[str, Any]:
    """The directory's manifest: the one there if it is of the same run, else the new one."""
    if not manifests.exists(place):
        orphans = sorted(name for name in listed(place) if chunk_of(name) is not None)
        if orphans:
            raise RunDirectoryError(
                f"{place} holds results ({orphans[0]}) but no {manifests.NAME}, so nobody knows "
                "what they were made from; give another directory"
            )
        place.write({manifests.NAME: manifests.to_bytes(new)})
        return new
    old = manifests.read(place)
    manifests.require_same_run(place, old, new)
    manifests.require_same_shard(place, old, new)
    return old


def _clean(place: Place, plan: Plan) -> set[int]:
    """Remove what a killed run left, and damaged chunks; returns the chunks that are whole."""
    names = listed(place)
    done = set()
    for chunk in own_chunks(place, names, plan):
        try:
            if is_whole(place, plan, chunk):
                done.add(chunk)
        except DamagedChunk as error:
            logger.warning(
                "%s: %s %s; its chunk is computed again", place, error.file, error.reason
            )
    for name in _leftovers(names, done):
        place.remove(name)
    return done


def _leftovers(names: Sequence[str], done: set[int]) -> list[str]:
    """Files to remove; of a chunk the one first whose presence says that it is there."""
    found = []
    for name in names:
        stem = name.removesuffix(TEMPORARY)
        chunk = chunk_of(stem)
        if stem != name:
            if chunk is not None or stem == manifests.NAME:
                found.append(name)
        elif chunk is not None and chunk not in done:
            found.append(name)
    return sorted(found, key=lambda name: (not name.startswith(TABLES[-1]), name))
