"""Run directories at URLs, through fsspec: object stores and remote file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.files.locks import LOCK
from dkn_engine.store.places import LocalPlace, Place


def remote_place(url: str) -> Place:
    """The place of a URL; ``file://`` is a local folder with all its guarantees.

    Raises:
        UserError: its file system is not known or not installed.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        system, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be used: {_line(error)}") from error
    if type(system) is LocalFileSystem:
        return LocalPlace(Path(path))
    return RemotePlace(system, path, url)


class RemotePlace:
    """A folder of an fsspec file system.

    Files get their own names at once, since object stores put an object whole or not at all. On
    a file system that does not, a kill may leave half a file, whose chunk is computed again.

    Args:
        system: an ``fsspec.AbstractFileSystem``.
        path: of the folder, as the file system spells it.
        url: as the user gave it.
    """

    def __init__(self, system: Any, path: str, url: str) -> None:
        self._system, self._path, self._url = system, path.rstrip("/"), url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    @property
    def identity(self) -> str:
        return str(self._system.unstrip_protocol(self._path))

    def at(self, name: str) -> str:
        return f"{self._url}/{name}"

    def names(self) -> list[str]:
        with self._errors(self._url):
            self._system.invalidate_cache(self._path)
            found = self._system.ls(self._path, detail=False)
        return [str(name).rstrip("/").rpartition("/")[2] for name in found]

    def read(self, name: str) -> bytes:
        with self._errors(self.at(name)):
            contents: bytes = self._system.cat_file(self._inside(name))
        return contents

    def write(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            with self._errors(self.at(name)):
                self._put(name, data)

    def remove(self, name: str) -> None:
        with self._errors(self.at(name)):
            self._system.rm_file(self._inside(name))

    def create(self, name: str, data: bytes) -> None:
        """Put a file that is not there yet: in one step where the file system can.

        Raises:
            FileExistsError: it is there.
        """
        with self._errors(self.at(name)):
            try:
                self._put(name, data, mode="create")
            except (TypeError, ValueError, NotImplementedError):  # It cannot.
                if self._system.exists(self._inside(name)):
                    raise FileExistsError(errno.EEXIST, "it is there", self.at(name)) from None
                self._put(name, data)

    def lock(self) -> LockFile:
        return LockFile(self)

    def _inside(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _put(self, name: str, data: bytes, **mode: str) -> None:
        path = self._inside(name)
        try:
            self._system.pipe_file(path, data, **mode)
        except FileNotFoundError:  # Where folders do not come with their files.
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(path, data, **mode)

    @contextlib.contextmanager
    def _errors(self, at: str) -> Iterator[None]:
        """Absence and missing permission as the system says them, all else as one line.

        File systems raise what the libraries under them raise, of any class.
        """
        try:
            yield
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            raise
        except PermissionError as error:
            raise PermissionError(errno.EACCES, error.strerror or _line(error), at) from error
        except Exception as error:
            raise RunDirectoryError(f"{at}: {_line(error)}") from error


class LockFile:
    """A lock for file systems that have none: a file that names its owner.

    Advisory, and weaker than a lock of the system: a killed run leaves it behind, and where the
    file system cannot create a file exclusively two runs that begin in the same instant may both
    have it, until the next chunk of one of them finds the other's.

    Raises:
        RunDirectoryError: another writer holds the lock; says what to do if it was killed.
    """

    def __init__(self, place: RemotePlace) -> None:
        self._place, self.held = place, False
        now = datetime.now(UTC).isoformat(timespec="seconds")
        owner = f"process {os.getpid()} on {socket.gethostname()}, since {now}"
        self._mine = f"{owner}\n{uuid.uuid4()}\n".encode()
        try:
            place.create(LOCK, self._mine)
        except FileExistsError:
            self._refuse()
        self.held = True
        self.require()

    def require(self) -> None:
        try:
            found = self._place.read(LOCK)
        except FileNotFoundError:
            found = b""
        if found != self._mine:
            self.held = False
            self._refuse()

    def release(self) -> None:
        if self.held:
            self.held = False
            with contextlib.suppress(FileNotFoundError):
                if self._place.read(LOCK) == self._mine:
                    self._place.remove(LOCK)

    def _refuse(self) -> None:
        try:
            owner = self._place.read(LOCK).partition(b"\n")[0].decode("utf-8", "replace")
        except FileNotFoundError:
            owner = "its lock was removed"
        raise RunDirectoryError(
            f"run directory {self._place} is being written by another run ({owner}); wait for it "
            f"to end or give another directory; if it was killed, remove {self._place.at(LOCK)}"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
