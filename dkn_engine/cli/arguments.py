"""Frozen dataclasses of options, from which a parser is built and which it then fills.

A field made by :func:`option` says what argparse is told of it; any other field is such a dataclass
itself, a group that several commands share, under its ``TITLE`` in the help if it has one. Nothing
behind the parser sees a ``Namespace``.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from dkn_engine.errors import UserError
from dkn_engine.files.local_paths import local_path
from dkn_engine.files.strict_json import parse_json
from dkn_engine.models.load import DEVICE_MAPS, DeviceMap

T = TypeVar("T")


def option(name: str, help: str, *, default: Any = MISSING, group: str = "", **told: Any) -> Any:
    """A field that the command line gives.

    Args:
        name: with its dashes; of an argument without any, the field's own.
        help: for people.
        default: of the field; an option without one is required.
        group: of fields of the same group only one may be given.
        told: ``add_argument``'s other arguments. What can be given several times is a tuple.
    """
    several = told.get("nargs") in {"+", "*"} or told.get("action") == "append"
    if name.startswith("-"):
        told |= {"required": True} if default is MISSING else {}
    if default is not MISSING and not several:
        told["default"] = default
    metadata = {"name": name, "group": group, "several": several, "told": told | {"help": help}}
    return dataclasses.field(default=default, metadata=metadata)


def switch(name: str, help: str) -> Any:
    """A field that is False unless its option is there."""
    return option(name, help, default=False, action="store_true")


def number(name: str, help: str, *, default: Any = None, type: Any = None) -> Any:
    """A field for an integer, of 1 or more unless ``type`` says otherwise."""
    return option(name, help, default=default, type=type or positive, metavar="N")


_REQUIRED, _OTHERS = "required", "options"


def add_arguments(parser: argparse.ArgumentParser, options: Any) -> None:
    """Let a parser take the options of a dataclass, and say so in its help.

    What is required comes first, then the rest, group by group, and in the end ``--help``.
    """
    fields = list(_fields(options, _OTHERS))
    groups: dict[str, Any] = {}
    # As argparse has them: its own group of --help, and what alone may be given.
    exclusive: dict[str, Any] = {}
    order = [_REQUIRED, *dict.fromkeys(title for title, _ in fields if title != _REQUIRED)]
    for title, f in sorted(fields, key=lambda found: order.index(found[0])):
        name, group, told = f.metadata["name"], f.metadata["group"], f.metadata["told"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        to = groups[title]
        if group:
            to = exclusive.setdefault(group, None) or to.add_mutually_exclusive_group()
            exclusive[group] = to
        if name.startswith("-"):
            told = told | {"dest": f.name}
        to.add_argument(name, **told)
    groups.setdefault(order[-1], parser).add_argument(
        "-h", "--help", action="help", help="Show this help and exit."
    )
    one_of = getattr(options, "ONE_OF", "")  # what must be given in one of several ways
    parser.usage = _usage(parser.prog, [f for t, f in fields if t == _REQUIRED], one_of)


def _fields(options: Any, title: str) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every option of a dataclass and of its groups, with the title that it is under."""
    hints = get_type_hints(options)
    for f in dataclasses.fields(options):
        if not f.metadata:
            group = hints[f.name]
            yield from _fields(group, getattr(group, "TITLE", title))
        else:
            required = f.default is MISSING or not f.metadata["name"].startswith("-")
            yield _REQUIRED if required else title, f


def _usage(prog: str, required: list[dataclasses.Field[Any]], one_of: str) -> str:
    """What must be given; all else is listed below it."""
    parts = [prog]
    for f in required:
        name, told = f.metadata["name"], f.metadata["told"]
        value = told.get("metavar", f.name.upper())
        text = f"{name} {value}" if name.startswith("-") else value
        text += " ..." if told.get("nargs") in {"+", "*"} else ""
        parts.append(text if f.default is MISSING else f"[{text}]")
    text = " ".join([*parts, *([one_of] if one_of else []), "[options]"])
    return textwrap.fill(text, 72, subsequent_indent="    ", break_on_hyphens=False)


def make_options(options: type[T], given: argparse.Namespace) -> T:
    """The dataclass with what the parser was given."""
    hints = get_type_hints(options)
    values: dict[str, Any] = {}
    for f in dataclasses.fields(options):  # type: ignore[arg-type]  # T is a dataclass
        if not f.metadata:
            values[f.name] = make_options(hints[f.name], given)
        else:
            value = getattr(given, f.name)
            if f.metadata["several"]:
                value = tuple(value or (() if f.default is MISSING else f.default))
            values[f.name] = value
    return options(**values)


def natural(text: str) -> int:
    """An integer of 0 or more."""
    return 0 if text.strip() == "0" else positive(text)


def positive(text: str) -> int:
    """An integer of 1 or more."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer; got {text!r}")
    return value


def run_path(text: str) -> str | Path:
    """A run directory: a folder, or a URL."""
    return text if "://" in text else _at_home(text)


def folder(text: str) -> Path:
    """A folder of this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"must be a folder of this machine; got {text!r}")
    return _at_home(text)


def device_map(text: str) -> DeviceMap:
    """One of accelerate's ways, or what a JSON file says of each module."""
    if text in DEVICE_MAPS:
        return text
    try:
        found = parse_json(_at_home(text).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = getattr(error, "strerror", None) or error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(
            f"must be {', '.join(DEVICE_MAPS)}, or a JSON file with a device for each module; "
            f"got {text!r}" + (f": {found}" if isinstance(found, str | Exception) else "")
        )
    return found


def _at_home(text: str) -> Path:
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
