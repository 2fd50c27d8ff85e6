"""Which code computed something: a version stays the same from one commit to the next."""

from __future__ import annotations

import functools
import hashlib
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def code_digest() -> str:
    """16 hexadecimal digits that identify the engine's own code, as it was at the first call.

    Over names and contents of all Python files, the packaged data and the compiled extension that
    this Python loads. So builds of the same sources by other compilers have other digits.

    Raises:
        OSError: a file cannot be read.
    """
    return _digest(_PACKAGE, _extension())


def _extension() -> Path | None:
    try:
        found = find_spec("dkn_engine._native")
    except ImportError:  # The digest says that there is none; what needs it says why.
        return None
    return None if found is None or found.origin is None else Path(found.origin)


def _digest(package: Path, extension: Path | None) -> str:
    files = {p.relative_to(package).as_posix(): p for p in package.rglob("*.py")}
    files |= {p.relative_to(package).as_posix(): p for p in package.rglob("*.jsonl")}
    if extension is not None:
        files["_native"] = extension  # its own name holds the platform's
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{content} {name}\n".encode())
    return found.hexdigest()[:16]
