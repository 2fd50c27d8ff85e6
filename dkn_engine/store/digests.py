"""What a chunk's files were when they were written, noted in the one that is written last.

Page checksums see a changed page, but not a file that was exchanged, or spliced from two. The note
holds a digest of every file; its own counts with that digest's place blank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

KEY = b"dkn_engine.digests"
_BLANK = "0" * 64


def digest(data: bytes) -> str:
    """BLAKE2b of a file's contents, 64 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def note(files: Mapping[str, bytes], last: str) -> str:
    """The text for the last file, to be completed by :func:`sealed`.

    Args:
        files: contents of the others, by table.
        last: the table that is written last.
    """
    return json.dumps({table: digest(data) for table, data in files.items()} | {last: _BLANK})


def sealed(file: bytes) -> bytes:
    """The last file with its own digest in the note's blank."""
    return _replaced(file, _BLANK, digest(file))


def unlike(files: Mapping[str, bytes], noted: bytes) -> str | None:
    """The table whose file is not the noted one, or None.

    Where none of the others is, it is the last that belongs elsewhere.

    Args:
        files: contents by table, the last one holding the note.
        noted: the note.

    Raises:
        ValueError: it is not a note.
    """
    wanted = json.loads(noted)
    if not isinstance(wanted, dict) or set(wanted) != set(files):
        raise ValueError("not a note of digests")
    *others, last = files
    own = str(wanted[last])
    wrong = [table for table in others if wanted[table] != digest(files[table])]
    if digest(_replaced(files[last], own, _BLANK)) != own or len(wrong) == len(others):
        return last
    return wrong[0] if wrong else None


def _replaced(file: bytes, old: str, new: str) -> bytes:
    before, _, after = file.rpartition(old.encode())
    return before + new.encode() + after
