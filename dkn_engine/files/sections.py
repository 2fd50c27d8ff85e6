"""Options as frozen dataclasses that check themselves, and go to and from nested plain tables."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from dkn_engine.errors import UserError
from dkn_engine.files.local_paths import local_path
from dkn_engine.files.strict_json import parse_json

_UNFIT = object()


def count(default: Any, least: int = 1) -> Any:
    """A field for an integer of at least ``least``."""
    return field(default=default, metadata={"least": least})


def later(default: Any) -> Any:
    """A field that older versions had not, and did as its default says."""
    return field(default=default, metadata={"later": True})


def integer(value: Any) -> int | None:
    """The plain integer of Python's or NumPy's; None for anything else, and bools."""
    ok = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if ok else None


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of all options: checks every field's type, ``Literal`` ones against their values.

    Values that have a plain counterpart become it, so that one choice has one hash: numbers of
    NumPy's, integers where a number is wanted, and lists where a tuple is.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value, least = getattr(self, f.name), f.metadata.get("least")
            fitted = _fit(value, hints[f.name])
            if fitted is _UNFIT or (least is not None and type(fitted) is int and fitted < least):
                expected = " or ".join(_words(kind, least) for kind in _kinds(hints[f.name]))
                raise UserError(f"{f.name} must be {expected}; got {_item(value)!r}")
            object.__setattr__(self, f.name, fitted)

    def _require(self, name: str, ok: bool, expected: str) -> None:
        if not ok:
            raise UserError(f"{name} must be {expected}; got {getattr(self, name)!r}")

    @classmethod
    def of(cls, section: Self | None = None, **changes: Any) -> Self:
        """A section, the defaults if None, with single values changed.

        Raises:
            UserError: an unknown name, or a value that is not allowed.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        unknown = [name for name in changes if name not in names]
        if unknown:
            raise UserError(f"{cls.__name__} has no {unknown[0]!r}; known: {', '.join(names)}")
        return cls(**changes) if section is None else dataclasses.replace(section, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict of JSON's values, as written to a manifest."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def written(self) -> dict[str, Any]:
        """:meth:`to_dict` as it is hashed and kept: later fields only where they are set.

        So runs of older versions go on, and their hashes stay.
        """
        data = self.to_dict()
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Section):
                data[f.name] = value.written()
            elif f.metadata.get("later") and value == f.default:
                del data[f.name]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "config") -> Self:
        """Inverse of :meth:`to_dict`; missing keys keep defaults.

        Args:
            data: values by the names of fields.
            where: what messages call the section.

        Raises:
            UserError: an unknown key, or a value that is not allowed.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"{where} must be a table; got {data!r}")
        hints = get_type_hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - names)
        if unknown:
            known = ", ".join(sorted(names))
            raise UserError(f"{where}: unknown key {unknown[0]!r}; known: {known}")
        values = dict(data)
        for name in data:
            if isinstance(hints[name], type) and issubclass(hints[name], Section):
                values[name] = hints[name].from_dict(data[name], f"{where}.{name}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)


def _fit(value: Any, hint: Any) -> Any:
    """The value in the hint's own type, or ``_UNFIT``."""
    fitted = (_fit_kind(_item(value), kind) for kind in _kinds(hint))
    return next((f for f in fitted if f is not _UNFIT), _UNFIT)


def _fit_kind(value: Any, kind: Any) -> Any:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        ok = any(type(value) is type(a) and value == a for a in arguments)
    elif get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
            return _UNFIT
        items = tuple(_fit(item, arguments[0]) for item in value)
        # Several of some choices are a selection.
        twice = get_origin(arguments[0]) is Literal and len(set(items)) < len(items)
        return _UNFIT if twice or _UNFIT in items else items
    elif get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            return _UNFIT
        fitted = {_fit(k, arguments[0]): _fit(v, arguments[1]) for k, v in value.items()}
        return _UNFIT if _UNFIT in fitted or _UNFIT in fitted.values() else fitted
    elif kind is float and type(value) is int:
        return float(value)
    else:
        ok = type(value) is kind  # By class, since True is an instance of int.
    return value if ok else _UNFIT


def _words(kind: Any, least: int | None = None) -> str:
    if get_origin(kind) is Literal:
        allowed = ", ".join(repr(a) for a in get_args(kind))
        return f"one of {allowed}" if len(get_args(kind)) > 1 else allowed
    if get_origin(kind) is tuple:
        (item, _) = get_args(kind)
        if get_origin(item) is Literal:
            return f"among {', '.join(get_args(item))}, each once"
        return f"a list, each of it {' or '.join(map(_words, _kinds(item)))}"
    if get_origin(kind) is Mapping:
        return f"a table, each of it {' or '.join(map(_words, _kinds(get_args(kind)[1])))}"
    names = {bool: "true or false", int: "an integer", float: "a number", type(None): "none"}
    names[str] = "text"
    if kind is int and least is not None:
        return f"an integer of at least {least}"
    return names.get(kind, f"of class {kind.__name__}")


def dotted_keys(data: Mapping[str, Any], before: str = "") -> list[str]:
    """The settings in nested plain data, each by its key, as in ``selection.threshold``."""
    found: list[str] = []
    for name, value in data.items():
        key = f"{before}{name}"
        found += dotted_keys(value, f"{key}.") if isinstance(value, Mapping) else [key]
    return found


def read_table(path: str | Path) -> dict[str, Any]:
    """The table that a ``.toml`` or ``.json`` file of settings holds.

    Raises:
        UserError: another kind of file, one that cannot be read, or no table in it.
    """
    path = local_path(path)
    if path.suffix not in {".toml", ".json"}:
        raise UserError(f"config must be a .toml or .json file; got {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows puts a mark there
        data = tomllib.loads(text) if path.suffix == ".toml" else parse_json(text)
    except (OSError, ValueError) as error:
        raise UserError(f"config {path} cannot be read: {error}") from error
    except RecursionError:
        raise UserError(f"config {path} cannot be read: nested too deeply") from None
    if not isinstance(data, dict):
        raise UserError(f"config {path} must hold a table; got {type(data).__name__}")
    return data
