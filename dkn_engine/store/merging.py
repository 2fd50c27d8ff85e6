"""One run directory out of those of a run's shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.store import manifest as manifests
from dkn_engine.store.directory import RunDirectory
from dkn_engine.store.open_place import RunPath, place_of
from dkn_engine.store.places import Place
from dkn_engine.store.plan import Plan
from dkn_engine.store.reader import Reader


def merge(out: RunPath, directories: Sequence[RunPath], *, compact: bool = False) -> int:
    """Put the chunks of shards together; returns the number of facts.

    The files are those that an undisturbed single run would have written. It can be called again
    after a kill.

    Args:
        out: run directory, new or begun by the same call; not one of the shards'.
        directories: of the shards, together the whole run.
        compact: put the chunks into few files, whatever their number; see
            :meth:`dkn_engine.store.RunDirectory.compact`. Else those of runs that are read faster
            so; see :meth:`dkn_engine.store.RunDirectory.finish`.

    Raises:
        RunDirectoryError: the shards do not belong to the same run, a chunk is missing or there
            twice, or chunks do not hold each fact once; names what differs.
        UserError: there is no shard, or ``out`` is among them.
    """
    shards = [place_of(directory) for directory in directories]
    if not shards:
        raise UserError("merge needs the directories of shards; got none")
    seen = {place_of(out).identity}
    for shard in shards:
        if shard.identity in seen:
            raise UserError(f"{shard} is given twice")
        seen.add(shard.identity)
    whole = _common_manifest(shards)
    plan = manifests.plan_of(whole)
    homes = _homes(shards, plan)
    for window in range(plan.n_windows):
        _require_every_position(plan, window, homes)
    with RunDirectory.adopt(out, whole) as directory:
        there = directory.done_chunks()
        for chunk, home in homes.items():
            if chunk not in there:
                directory.write_chunk(chunk, home.files(chunk))
        if compact:
            directory.compact()
        else:
            directory.finish()
    return plan.n_facts


def _common_manifest(shards: Sequence[Place]) -> dict[str, Any]:
    """The manifest of the whole run, of which every directory holds a part."""
    found = [manifests.read(shard) for shard in shards]
    for shard, other in zip(shards[1:], found[1:], strict=True):
        manifests.require_same_run(shard, other, found[0])
    left_out = ("continued", "chunks_per_file")
    whole = {key: value for key, value in found[0].items() if key not in left_out}
    grown = "grown" in whole
    whole["format_version"] = manifests.GROWN_VERSION if grown else manifests.FORMAT_VERSION
    if any("traits" not in manifest for manifest in found):
        whole.pop("traits", None)
    whole["created"] = min(manifest["created"] for manifest in found)
    whole["shard"] = {"index": 0, "of": 1}
    entries = [entry for manifest in found for entry in manifest.get("continued", [])]
    entries += [
        {"time": manifest["created"], "versions": manifest["versions"]}
        for manifest in found
        if manifest["versions"] != whole["versions"]
    ]
    if entries:
        whole["continued"] = entries
    return whole


def _homes(shards: Sequence[Place], plan: Plan) -> dict[int, Reader]:
    """Where each chunk is."""
    homes: dict[int, tuple[Place, Reader]] = {}
    for shard in shards:
        reader = Reader(shard)
        for chunk in reader.done():
            if chunk in homes:
                raise RunDirectoryError(
                    f"chunk {chunk} is in {homes[chunk][0]} and in {shard}; shards must not overlap"
                )
            homes[chunk] = shard, reader
    missing = [chunk for chunk in plan.chunks if chunk not in homes]
    if missing:
        raise RunDirectoryError(
            f"{len(missing)} of {plan.n_chunks} chunks are in none of the directories, the first "
            f"is {missing[0]}; finish the shards that hold them, or name their directories"
        )
    return {chunk: reader for chunk, (_, reader) in sorted(homes.items())}


def _require_every_position(plan: Plan, window: int, homes: dict[int, Reader]) -> None:
    """The chunks of a window hold each of its facts once."""
    chunks, positions = plan.chunks_of(window), list[int]()
    for chunk in chunks:
        positions += homes[chunk].rows([chunk])["facts"]["position"].to_pylist()
    if sorted(positions) != list(plan.facts_of(window)):
        raise RunDirectoryError(
            f"chunks {chunks.start} to {chunks.stop - 1} do not hold each of their facts once; "
            "the shards come from different tokenizers"
        )
