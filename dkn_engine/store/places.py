"""Where a run directory is: a folder of this machine, or a URL that fsspec knows."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from dkn_engine.errors import RunDirectoryError, UserError
from dkn_engine.files.atomic import write_files
from dkn_engine.files.local_paths import local_path
from dkn_engine.files.locks import DirectoryLock

RunPath = str | Path
_HALF_A_URL = re.compile(r"[A-Za-z][\w+.:-]+:")


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
            RunDirectoryError: another writer is there, or the folder cannot be written.
        """


def place_of(path: RunPath) -> Place:
    """The place of a path or URL.

    Raises:
        UserError: a URL whose file system is not known or not installed.
    """
    text = str(path)
    if "://" in text:
        from dkn_engine.store.remote import remote_place

        return remote_place(text)
    path = local_path(path)
    if path.parts and _HALF_A_URL.fullmatch(path.parts[0]):
        raise UserError(f"{text!r} is a path made from a URL; give the URL as text")
    return LocalPlace(path)


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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return DirectoryLock(self.path)
        except OSError as error:
            raise RunDirectoryError(
                f"run directory {self.path} cannot be written: {error.strerror or error}"
            ) from error


@contextlib.contextmanager
def as_folder(path: RunPath, *names: str) -> Iterator[Path]:
    """A folder of this machine for what can write nowhere else.

    It is the place itself where that is one; else it begins with the named files of the place, and
    all files that are new or changed at the end of the block are put into the place.
    """
    place = place_of(path)
    if isinstance(place, LocalPlace):
        yield place.path
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = {name: place.read(name) for name in names}
        write_files(folder, begun)
        yield folder
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        found = {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}
        place.write({n: data for n, data in found.items() if begun.get(n) != data})
