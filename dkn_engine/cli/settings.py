"""The configuration of a run from command-line options."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dkn_engine.config import Config
from dkn_engine.errors import UserError

PRESETS = {"default": Config, "paper": Config.paper, "released": Config.released}


_LEAST = "filter.min_probability"
_WHERE = re.compile(r"\s*known\s*(>=?)\s*(\S+)\s*")


def config_from_options(
    preset: str = "default",
    file: str | Path | None = None,
    changes: Sequence[str] = (),
    where: str | None = None,
) -> Config:
    """A preset, or a file's configuration, with single values changed.

    Args:
        preset: a name in ``PRESETS``; checked, but not used with a file.
        file: TOML or JSON.
        changes: ``section.key=value`` each; values as in JSON, text without quotes.
        where: ``known>P`` or ``known>=P``: the least probability of a fact that counts as known.

    Raises:
        UserError: no such preset, the file cannot be read, a key is unknown, or a value is not
            allowed.
    """
    if preset not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    config = PRESETS[preset]() if file is None else Config.load(file)
    if not changes and where is None:
        return config
    # All changes before any check: some values are only allowed together.
    data = config.to_dict()
    for change in changes:
        _assign(data, change)
    if where is not None:
        if any(change.partition("=")[0].strip() == _LEAST for change in changes):
            raise UserError(f"--where and --set {_LEAST} say the same thing; give one of them")
        data["filter"]["min_probability"] = _least_probability(where)
    return Config.from_dict(data)


def _least_probability(where: str) -> float:
    match = _WHERE.fullmatch(where)
    try:
        value = float(match[2]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not 0 <= value <= 1:
        raise UserError(f"--where must be known>P or known>=P, P from 0 to 1; got {where!r}")
    # What must be above a number must at least be the next one.
    return value if match[1] == ">=" else math.nextafter(value, math.inf)


def _assign(data: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise UserError(f"--set must be section.key=value; got {change!r}")
    *sections, name = key.strip().split(".")
    node: Any = data
    for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        tables = ", ".join(k for k, v in data.items() if isinstance(v, dict))
        raise UserError(f"--set {key.strip()}: unknown section; known: {tables}")
    if name not in node or isinstance(node[name], dict):
        known = ", ".join(k for k, v in node.items() if not isinstance(v, dict))
        raise UserError(f"--set {key.strip()}: unknown key {name!r}; known: {known}")
    node[name] = _convert(key.strip(), _parse(text.strip()), node[name])


def _parse(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(key: str, value: Any, old: Any) -> Any:
    """The value with the old one's type; None and text may stand for other things (see Config)."""
    if isinstance(old, bool) and not isinstance(value, bool):
        raise UserError(f"--set {key}: must be true or false; got {value!r}")
    if isinstance(old, int | float) and not isinstance(old, bool):
        if isinstance(value, bool | str):
            raise UserError(f"--set {key}: must be a number; got {value!r}")
        if isinstance(old, int) and isinstance(value, float):
            raise UserError(f"--set {key}: must be an integer; got {value!r}")
        if isinstance(old, float) and isinstance(value, int):
            # 1 and 1.0 are the same choice and must have the same hash.
            return float(value)
    return value
