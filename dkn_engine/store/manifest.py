"""The manifest: what a run directory was made from, and what differs from another run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dkn_engine.config import Config
from dkn_engine.errors import RunDirectoryError
from dkn_engine.store.places import Place
from dkn_engine.store.plan import Plan, Shard

if TYPE_CHECKING:
    from dkn_engine.models.fingerprint import Identity

logger = logging.getLogger(__name__)

NAME = "manifest.json"
FORMAT = "dkn_engine run directory"
FORMAT_VERSION = 2
COMPACTED_VERSION = 3  # of a run whose chunks were put into few files; else the same
GROWN_VERSION = 4  # of a run that took more facts, compacted or not
_VERSIONS = (FORMAT_VERSION, COMPACTED_VERSION, GROWN_VERSION)
_ABSENT = "(not set)"
_LARGEST = 2**63 - 1  # what the column of positions holds
# A table, a type, or the least value of an integer.
_FORM: dict[str, Any] = {
    "created": str,
    "config_hash": str,
    "config": {},
    "model": {"name": str, "fingerprint": str},
    "facts": {"n": 0, "digest": str},
    "facts_per_chunk": 1,
    "chunks_per_window": 1,
    "shard": {"index": 0, "of": 1},
    "versions": {},
}


def build(
    config: Config,
    identity: Identity,
    plan: Plan,
    facts_digest: str,
    versions: Mapping[str, Any],
    mask_token: str | None,
) -> dict[str, Any]:
    """The manifest of a new run, as plain JSON data; without ``traits`` where they are unknown."""
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_hash": config.hash,
        "config": config.written(),
        "model": {"name": identity.name, "fingerprint": identity.fingerprint},
        "mask_token": mask_token,
        "facts": {"n": plan.n_facts, "digest": facts_digest},
        "facts_per_chunk": plan.facts_per_chunk,
        "chunks_per_window": plan.chunks_per_window,
        "shard": {"index": plan.shard.index, "of": plan.shard.of},
        "versions": dict(versions),
    }
    if plan.grown:
        manifest |= {"format_version": GROWN_VERSION, "grown": plan.grown}
    if identity.traits:
        manifest["traits"] = identity.traits
    # Through JSON and back, so that a fresh manifest compares equal to one read from disk.
    plain: dict[str, Any] = json.loads(json.dumps(manifest))
    return plain


def to_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The file's contents."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def exists(directory: Place) -> bool:
    """Whether there is a manifest, readable or not."""
    try:
        directory.read(NAME)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def read(directory: Place) -> dict[str, Any]:
    """The manifest of a run directory.

    Raises:
        RunDirectoryError: there is none, it is not ours, or a newer version wrote it.
    """
    path = directory.at(NAME)
    try:
        data = json.loads(directory.read(NAME).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(f"{directory} is not a run directory: no {NAME} there") from None
    except RecursionError:
        raise RunDirectoryError(f"{path} is damaged: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise RunDirectoryError(f"{path} is not the manifest of a run directory")
    version = data.get("format_version")
    if type(version) is not int or version not in _VERSIONS:
        raise RunDirectoryError(
            f"{path} has format version {version!r}; this version of the engine reads "
            f"{FORMAT_VERSION} to {GROWN_VERSION}"
        )
    _require_form(path, data, _FORM, "")
    if data["shard"]["index"] >= data["shard"]["of"]:
        raise RunDirectoryError(f"{path} is damaged: shard is {data['shard']!r}")
    compacted_by_version = {FORMAT_VERSION: False, COMPACTED_VERSION: True}
    if compacted_by_version.get(version, "chunks_per_file" in data) != ("chunks_per_file" in data):
        raise RunDirectoryError(f"{path} is damaged: chunks_per_file is in format 3 alone")
    if (version == GROWN_VERSION) != ("grown" in data):
        raise RunDirectoryError(f"{path} is damaged: grown is in format 4 alone")
    for key, is_one in _LATER.items():
        if key in data and not is_one(data[key]):
            raise RunDirectoryError(f"{path} is damaged: {key} is {data[key]!r}")
    if data.get("grown", [0])[-1] >= data["facts"]["n"] > 0:
        raise RunDirectoryError(f"{path} is damaged: grown is {data['grown']!r}")
    return data


def _are_entries(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("versions"), dict) for entry in found
    )


def _are_traits(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(table, dict) for table in found.values())


def _are_ascending(found: Any) -> bool:
    if not isinstance(found, list) or not found or any(type(n) is not int for n in found):
        return False
    return found[0] > 0 and all(a < b for a, b in pairwise(found))


# What a manifest may lack, and what it must be if it is there.
_LATER: dict[str, Callable[[Any], bool]] = {
    "continued": _are_entries,
    "traits": _are_traits,
    "chunks_per_file": lambda found: type(found) is int and 0 < found <= _LARGEST,
    "grown": _are_ascending,
    "mask_token": lambda found: found is None or isinstance(found, str),
}


def versions_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the run was made with: at first, and each time that it was continued with others."""
    return [manifest["versions"], *(e["versions"] for e in manifest.get("continued", []))]


def continued(manifest: Mapping[str, Any], versions: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a run that goes on with other versions."""
    entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "versions": dict(versions)}
    return {**manifest, "continued": [*manifest.get("continued", []), entry]}


def compacted(manifest: Mapping[str, Any], chunks_per_file: int) -> dict[str, Any]:
    """The manifest of a run whose chunks are put together, so many a file."""
    version = GROWN_VERSION if "grown" in manifest else COMPACTED_VERSION
    return {**manifest, "format_version": version, "chunks_per_file": chunks_per_file}


def with_more_facts(
    directory: Place, old: Mapping[str, Any], new: Mapping[str, Any], digests: Mapping[int, str]
) -> dict[str, Any]:
    """The manifest of a run that takes more facts behind those that it has.

    Args:
        directory: for the message.
        old: the manifest on disk, of a run of fewer facts.
        new: that of the run that wants to continue.
        digests: of the first n facts, by n.

    Raises:
        RunDirectoryError: the facts before are not those of the run, or it is one shard of several.
    """
    n, now = old["facts"]["n"], new["facts"]["n"]
    if not n:  # It has no chunk yet, so that it begins with the facts that come now.
        return {**old, "facts": new["facts"]}
    if digests.get(n) != old["facts"]["digest"]:
        _refuse(
            directory,
            f"facts: were {n}, are now {now}, of which the first {n} are not those; a run takes "
            "more facts behind those that it has",
        )
    if old["shard"]["of"] > 1:
        _refuse(directory, f"facts: were {n}, are now {now}, and one shard takes no more")
    grown = [*old.get("grown", []), n]
    if new.get("grown") != grown:
        raise RunDirectoryError(f"{directory} changed meanwhile; give the same command again")
    return {**old, "format_version": GROWN_VERSION, "facts": new["facts"], "grown": grown}


def other_versions(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How versions differ, in words; empty if they do not.

    The engine's names every commit: of the same code, another one is not another.
    """
    if "code" in old and old["code"] == new.get("code"):
        old = {**old, "dkn_engine": new.get("dkn_engine", _ABSENT)}
    return ", ".join(
        f"{key} was {there}, is now {here}" for key, there, here in _differences(old, new)
    )


def plan_of(manifest: Mapping[str, Any]) -> Plan:
    """The arithmetic of a run's chunks."""
    shard = Shard(manifest["shard"]["index"], manifest["shard"]["of"])
    chunks = manifest["facts_per_chunk"], manifest["chunks_per_window"]
    return Plan(manifest["facts"]["n"], *chunks, shard, tuple(manifest.get("grown", ())))


def _require_form(path: str, data: Mapping[str, Any], form: Mapping[str, Any], at: str) -> None:
    """Everything that the engine reads is there and of its kind."""
    for key, kind in form.items():
        value = data.get(key)
        if isinstance(kind, int):
            ok = type(value) is int and kind <= value <= _LARGEST
        else:
            ok = isinstance(value, dict if isinstance(kind, dict) else kind)
        if value is None or not ok:
            raise RunDirectoryError(f"{path} is damaged: {at}{key} is {value!r}")
        if isinstance(kind, dict):
            _require_form(path, value, kind, f"{at}{key}.")


def require_same_run(directory: Place, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check that a run may continue a directory.

    Args:
        directory: for the message.
        old: the manifest on disk.
        new: the manifest of the run that wants to continue.

    Raises:
        RunDirectoryError: configuration, model, tokenizer or facts differ; names the first
            difference.
    """
    require_same_config(directory, old, new["config"])
    if old["model"]["fingerprint"] != new["model"]["fingerprint"]:
        there, here = (f"{m['model']['name']} ({m['model']['fingerprint']})" for m in (old, new))
        _refuse(directory, f"model: was {there}, is now {here}")
    _require_same_traits(directory, old.get("traits"), new.get("traits"))
    if old["facts"]["n"] != new["facts"]["n"]:
        _refuse(
            directory,
            f"facts: were {old['facts']['n']}, are now {new['facts']['n']}; a run takes more facts "
            "behind those that it has, and loses none",
        )
    if old["facts"]["digest"] != new["facts"]["digest"]:
        _refuse(directory, f"facts: as many ({new['facts']['n']}), but not the same")
    if old["chunks_per_window"] != new["chunks_per_window"]:
        there, here = (m["chunks_per_window"] for m in (old, new))
        _refuse(directory, f"version of the engine: chunks_per_window was {there}, is now {here}")
    for key in ("config_hash", "facts_per_chunk"):  # They follow from the configuration.
        if old[key] != new[key]:
            raise RunDirectoryError(f"{directory.at(NAME)} is damaged: {key} is {old[key]!r}")


def _require_same_traits(directory: Place, old: Any, new: Any) -> None:
    """What decides about numbers beside the fingerprint; see ``dkn_engine.models.fingerprint``."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        if old != new:
            logger.warning(
                "%s: an older version of the engine wrote its manifest, which does not say what "
                "the tokenizer and the model's settings were; it is taken for granted that they "
                "are the same",
                directory,
            )
        return
    for key, there, here in _differences(old, new):
        part, _, what = key.partition(".")
        if key == "model.hooks":  # known by name alone, and often there to look on only
            logger.warning(
                "%s: the model's hooks were %r, are now %r; rows before and after are of two "
                "models if they change what it computes",
                directory,
                there,
                here,
            )
        else:
            _refuse(directory, f"{part}: its {what} was {there!r}, is now {here!r}")


def require_same_shard(directory: Place, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check that a run computes the chunks that a directory is for.

    Raises:
        RunDirectoryError: it is another part of the run.
    """
    there, here = (plan_of(m).shard for m in (old, new))
    if there != here:
        _refuse(directory, f"shard: was {there}, is now {here}")


def require_same_config(
    directory: Place, old: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """The part of :func:`require_same_run` that needs neither model nor facts."""
    for key, there, here in _differences(old["config"], config):
        _refuse(directory, f"configuration: {key} was {there!r}, is now {here!r}")


def _refuse(directory: Place, difference: str) -> None:
    raise RunDirectoryError(
        f"run directory {directory} belongs to another {difference}; "
        "give another directory or the first run's settings"
    )


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value, wherever two nested tables differ."""
    for key in dict.fromkeys([*new, *old]):
        there, here = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            yield from _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            yield f"{prefix}{key}", there, here
