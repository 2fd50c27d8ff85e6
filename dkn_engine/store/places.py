"""What a place of files is: a folder of this machine here, others in the store's ``remote``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dkn_engine.files.atomic import write_files
from dkn_engine.files.locks import DirectoryLock


class Lock(Protocol):
    """Says that this process is the only writer of a place."""

    @property
    def held(self) -> bool:
        """Whether :meth:`release` has not been called yet."""

    def require(self) -> None:
        """Check, where the system does not see to it, that nobody has taken the lock away.

        Raises:
            RunDirectoryError: another run has.
        """

    def release(self) -> None:
        """Let another writer in; safe to call twice."""


class Place(Protocol):
    """A folder of files; its text is how the user gave it."""

    @property
    def identity(self) -> str:
        """The same for two spellings of one place, as far as that can be told."""

    def at(self, name: str) -> str:
        """A file's path or URL, for messages."""

    def names(self) -> list[str]:
        """Names of the files and folders in it.

        Raises:
            OSError: there is no such folder, or it cannot be listed.
        """

    def read(self, name: str) -> bytes:
        """A file's contents.

        Raises:
            OSError: it is not there (``FileNotFoundError``, ``NotADirectoryError``), or cannot be
                read.
        """

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put files there in the order given: when the last is there, so are the others.

        Raises:
            OSError, RunDirectoryError: a file cannot be written.
        """

    def remove(self, name: str) -> None:
        """Remove a file.

        Raises:
            OSError, RunDirectoryError: it cannot be removed.
        """

    def lock(self) -> Lock:
        """Become the only writer; makes the folder.

        Raises:
            RunDirectoryError: another writer is there.
            OSError: the folder cannot be written.
        """


class LocalPlace:
    """A folder of this machine, or of a file system that it has mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        return str(self.path.resolve())

    def at(self, name: str) -> str:
        return str(self.path / name)

    def names(self) -> list[str]:
        return [file.name for file in self.path.iterdir()]

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, files: Mapping[str, bytes]) -> None:
        """As said there, and a kill or power cut leaves each file whole, as it was, or absent."""
        write_files(self.path, files)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def lock(self) -> DirectoryLock:
        self.path.mkdir(parents=True, exist_ok=True)
        return DirectoryLock(self.path)
