"""The configuration of a run from command-line options."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.files.near_names import did_you_mean
from dkn_engine.files.sections import Section, dotted_keys, read_table

S = TypeVar("S", bound=Section)
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
    if where is not None:
        require_not_set(changes, _LEAST, "--where")
        # What is set last counts, and what is a number is read as one.
        changes = [*changes, f"{_LEAST}={_least_probability(where)!r}"]
    return settings_from_options(preset, file, changes, {})[0]


def settings_from_options(
    preset: str, file: str | Path | None, changes: Sequence[str], sections: Mapping[str, S]
) -> tuple[Config, dict[str, S]]:
    """As :func:`config_from_options`, with sections of others beside those of a run.

    Args:
        preset, file, changes: see there; a file may hold tables of the sections.
        sections: by name, with the values that they have if nothing changes them.
    """
    if preset not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    data = PRESETS[preset]().to_dict() | {name: s.to_dict() for name, s in sections.items()}
    if file is not None:
        data |= _file_data(file, sections)
    # All changes before any check: some values are only allowed together.
    for change in changes:
        _assign(data, change)
    changed = {name: type(s).from_dict(data.pop(name), name) for name, s in sections.items()}
    return Config.from_dict(data), changed


def _file_data(file: str | Path, sections: Mapping[str, Section]) -> dict[str, Any]:
    """The configuration of a run and those sections that a file holds, as plain data."""
    table = read_table(file)
    try:
        others = {
            name: type(section).from_dict(table.pop(name), name).to_dict()
            for name, section in sections.items()
            if name in table
        }
        return Config.from_dict(table).to_dict() | others
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def require_not_set(changes: Sequence[str], key: str, option: str) -> None:
    """Refuse an option that says what ``--set`` of a key says, too."""
    if any(change.partition("=")[0].strip() == key for change in changes):
        raise UserError(f"{option} and --set {key} say the same thing; give one of them")


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
        meant = did_you_mean(key.strip(), dotted_keys(data))
        raise UserError(f"--set {key.strip()}: unknown section; known: {tables}{meant}")
    if name not in node or isinstance(node[name], dict):
        known = ", ".join(k for k, v in node.items() if not isinstance(v, dict))
        meant = did_you_mean(key.strip(), dotted_keys(data))
        raise UserError(f"--set {key.strip()}: unknown key {name!r}; known: {known}{meant}")
    value = _parse(text.strip())
    if isinstance(node[name], list) and not isinstance(value, list):
        value = [_parse(part.strip()) for part in text.split(",")]
    node[name] = _convert(key.strip(), value, node[name])


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
