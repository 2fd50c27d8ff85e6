"""Durable files: groups written atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

TEMPORARY = ".tmp"


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a directory so that a kill leaves each one whole, as it was, or absent.

    All contents reach the disk before the first name changes, and names change in the order
    given: the last file's presence says that the others are there. A new file has the permissions
    that the user's umask leaves; one that is replaced keeps its own.

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
    except BaseException:
        for name in files:  # A full disk shall not stay full of what is of no use.
            with contextlib.suppress(OSError):
                (directory / (name + TEMPORARY)).unlink()
        raise
    for name in files:
        temporary, path = directory / (name + TEMPORARY), directory / name
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        temporary.replace(path)
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
