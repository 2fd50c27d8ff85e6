"""Where a run directory is: a folder of this machine, or a URL that fsspec knows."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dkn_engine.errors import UserError
from dkn_engine.files.atomic import write_files
from dkn_engine.files.local_paths import local_path
from dkn_engine.store.places import LocalPlace, Place
from dkn_engine.store.remote import remote_place

RunPath = str | Path
_HALF_A_URL = re.compile(r"[A-Za-z][\w+.:-]+:")


def place_of(path: RunPath) -> Place:
    """The place of a path or URL.

    Raises:
        UserError: a URL whose file system is not known or not installed.
    """
    text = str(path)
    if "://" in text:
        return remote_place(text)
    path = local_path(path)
    if path.parts and _HALF_A_URL.fullmatch(path.parts[0]):
        raise UserError(f"{text!r} is a path made from a URL; give the URL as text")
    return LocalPlace(path)


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
