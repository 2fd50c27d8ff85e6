"""Folders that are made once and kept: whole or absent, and checked whenever they are used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from dkn_engine.errors import UserError
from dkn_engine.files.locks import waiting_for

logger = logging.getLogger(__name__)

VARIABLE = "DKN_ENGINE_CACHE"
_SUMS = "checksums.json"


def cache_root() -> Path:
    """Where made things are kept: ``$DKN_ENGINE_CACHE``, else the platform's cache folder."""
    override = os.environ.get(VARIABLE)
    if override:
        return Path(override).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("dkn_engine", appauthor=False)


def cached_folder(name: str, make: Callable[[Path], None], *, root: Path | None = None) -> Path:
    """A folder with the files that ``make`` wrote once, its checksums verified.

    A folder is made under another name and renamed, so a kill at any moment leaves no half of it;
    a lock lets one process make it while others wait. A folder that does not match its checksums
    is made again.

    Args:
        name: of the folder; other content needs another name.
        make: writes files (no folders) into the empty folder that it is given.
        root: where the folder lies; None for :func:`cache_root`.

    Raises:
        UserError: the cache cannot be written.
        Exception: whatever ``make`` raises; nothing is kept then.
    """
    root = cache_root() if root is None else root
    folder = root / name
    if is_intact(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with waiting_for(root / f".{name}.lock"):
            # Another process may have made it while this one waited.
            if not is_intact(folder):
                _replace(folder, make)
    except OSError as error:
        if is_intact(folder):  # Where there are no locks, another process may have been first.
            return folder
        reason = error.strerror or str(error)
        raise UserError(
            f"cache folder {root} cannot be written: {reason}; free some space, or set "
            f"{VARIABLE} to another folder"
        ) from error
    return folder


def is_intact(folder: Path) -> bool:
    """Whether the folder holds exactly the files it was made with, unchanged."""
    try:
        sums = json.loads((folder / _SUMS).read_bytes())
        return isinstance(sums, dict) and sums == _checksums(folder)
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    return {f.name: sha256(f) for f in sorted(folder.iterdir()) if f.name != _SUMS}


def _replace(folder: Path, make: Callable[[Path], None]) -> None:
    """Make the folder anew. Only the holder of the lock comes here."""
    prefix = f".{folder.name}-"
    for left in folder.parent.glob(f"{prefix}*"):  # By a process that was killed.
        shutil.rmtree(left, ignore_errors=True)
    if folder.exists():
        logger.warning("%s does not match its checksums; making it again", folder)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        new = work / "new"
        new.mkdir()
        make(new)
        # Last, and not flushed to disk: what a power cut loses, the checksums find missing.
        (new / _SUMS).write_text(json.dumps(_checksums(new), indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            # Moved, not deleted in place: a half-deleted folder must not keep this name.
            folder.rename(work / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
