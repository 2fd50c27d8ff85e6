"""Locks between processes, which the system drops when their owner ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dkn_engine.errors import RunDirectoryError

logger = logging.getLogger(__name__)

LOCK = ".lock"
# Beside it, since Windows lets nobody read a file that is locked.
_OWNER = ".lock-owner"
# What network file systems without locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class DirectoryLock:
    """An advisory lock on a directory: one writer among all processes and threads.

    Args:
        directory: an existing directory; the lock is a file in it.

    Attributes:
        held: whether :meth:`release` has not been called yet.

    Raises:
        RunDirectoryError: another writer holds the lock; names its process.
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self._owner = directory / _OWNER
        # Who releases it may be another thread.
        self._lock = FileLock(directory / LOCK, thread_local=False)
        try:
            _acquire(self._lock, timeout=0)
        except Timeout:
            raise RunDirectoryError(
                f"run directory {directory} is being written by another run (process "
                f"{self._owner_id()}); wait for it to end or give another directory"
            ) from None
        self.held = True
        try:
            self._owner.write_text(f"{os.getpid()}\n", encoding="utf-8")
        except BaseException:
            self.release()
            raise

    def _owner_id(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return self._owner.read_text(encoding="utf-8").strip() or "unknown"
        return "unknown"

    def require(self) -> None:
        """Nothing: the system keeps the lock."""

    def release(self) -> None:
        """Let another writer in; safe to call twice."""
        if self.held:
            self.held = False
            with contextlib.suppress(OSError):
                self._owner.unlink(missing_ok=True)
            self._lock.release()


@contextlib.contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Hold the lock of this name for the block's length, after whoever else does.

    Raises:
        OSError: the lock's file cannot be made.
    """
    lock = FileLock(path)
    _acquire(lock, timeout=-1)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, timeout: float) -> None:
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:  # Timeout is one too.
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "no lock on %s (%s); let only one process write there", lock.lock_file, error
        )
