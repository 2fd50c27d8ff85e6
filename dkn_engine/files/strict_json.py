"""JSON as it is meant: a key that an object has twice is a mistake, not its last value."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: broken JSON, or a key that is there twice.
        RecursionError: nested too deeply.
    """
    return decoder().decode(text)


def decoder() -> json.JSONDecoder:
    """A decoder with that rule."""
    return json.JSONDecoder(object_pairs_hook=_unique)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        keys = [key for key, _ in items]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return found
