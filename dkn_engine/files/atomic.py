"""Durable files: groups written atomically, and one writer a directory."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from dkn_engine.errors import RunDirectoryError

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp"
LOCK = ".lock"


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a directory so that a kill leaves each one whole, as it was, or absent.

    All contents reach the disk before the first name changes, and names change in the order
    given: the last file's presence says that the others are there.

    Args:
        directory: an existing directory.
        files: contents by file name.

    Raises:
        OSError: a file cannot be written (disk full, no permission); names the file, and nothing
            has changed.
    """
    try:
        for name, data in files.items():
            _write(directory / (name + TEMPORARY), data)
    except OSError:
        for name in files:  # A full disk shall not stay full of what is of no use.
            with contextlib.suppress(OSError):
                (directory / (name + TEMPORARY)).unlink()
        raise
    for name in files:
        (directory / (name + TEMPORARY)).replace(directory / name)
    _sync_directory(directory)


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # The system names the file only where opening it failed.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_directory(directory: Path) -> None:
    """Make renames durable, where the platform lets a directory be opened (not on Windows)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DirectoryLock:
    """An advisory lock that the system drops when its process ends, however it ends.

    Args:
        directory: an existing directory; the lock is a file in it.

    Raises:
        RunDirectoryError: another writer holds the lock.
    """

    def __init__(self, directory: Path) -> None:
        self._file: IO[str] | None = (directory / LOCK).open("a+", encoding="utf-8")
        try:
            self._acquire(directory)
        except BaseException:
            self.release()
            raise

    def _acquire(self, directory: Path) -> None:
        assert self._file is not None
        try:
            import fcntl
        except ImportError:  # Windows: a single writer is then the user's promise.
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            raise RunDirectoryError(
                f"run directory {directory} is being written by another run (process {owner}); "
                "wait for it to end or give another directory"
            ) from None
        except OSError as error:  # Some network file systems have no locks.
            logger.warning("no lock on %s (%s); let only one run write there", directory, error)
            return
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    @property
    def held(self) -> bool:
        """Whether :meth:`release` has not been called yet."""
        return self._file is not None

    def require(self) -> None:
        """Nothing: the system keeps the lock."""

    def release(self) -> None:
        """Let another writer in; safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
