"""JSON objects by fact id, read with one clear message for whatever is wrong, written whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dkn_engine.errors import UserError
from dkn_engine.files.atomic import write_files
from dkn_engine.files.strict_json import parse_json


def read_object(path: Path) -> dict[str, Any]:
    """The object of a ``.json`` file, or those of all lines of a ``.jsonl`` file as one.

    Raises:
        UserError: the file cannot be read, is not such JSON, or holds an id twice; names file and
            line.
    """
    found: dict[str, Any] = {}
    for where, text in _documents(path):
        try:
            value = parse_json(text)
        except RecursionError:
            raise UserError(f"{where}: broken JSON: nested too deeply") from None
        except ValueError as error:
            raise UserError(f"{where}: broken JSON: {error}") from None
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise UserError(f"{where} must hold an object with fact ids as keys; got {kind}")
        for fact_id, entry in value.items():
            if fact_id in found:
                raise UserError(f"{where}: fact {fact_id!r} is there twice")
            found[fact_id] = entry
    return found


def write_text(path: Path, text: str) -> None:
    """The file whole or not at all.

    Raises:
        UserError: the folder is not there.
        OSError: the disk refuses.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    write_files(path.parent, {path.name: text.encode("utf-8", "backslashreplace")})


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """Each JSON text of the file, and where it is."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    if path.suffix != ".jsonl":
        yield str(path), text
        return
    # Not splitlines: JSON may hold U+2028 in a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line
