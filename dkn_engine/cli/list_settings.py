"""``dkn-engine settings``: every setting with its default and its meaning, also as TOML."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dkn_engine.analysis.config import ANALYSES, ClusterersConfig
from dkn_engine.cli.arguments import option, switch
from dkn_engine.cli.console import put
from dkn_engine.cli.settings import PRESETS
from dkn_engine.config import Config
from dkn_engine.errors import UserError
from dkn_engine.files.near_names import did_you_mean
from dkn_engine.files.sections import Section

_WIDTH = 88
_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*)$")


@dataclass(frozen=True, kw_only=True)
class SettingsOptions:
    """List every setting of a run and of the analyses: its name for --set, its
    default and its meaning. With --toml those of a run, as a file for --config.
    """

    section: str | None = option(
        "section",
        "List this section only, such as topology or robustness.",
        default=None,
        nargs="?",
        metavar="SECTION",
    )
    preset: str = option(
        "--preset",
        f"Show the values of this preset: {', '.join(PRESETS)} (default: default).",
        default="default",
        choices=tuple(PRESETS),
        metavar="NAME",
    )
    toml: bool = switch("--toml", "Print a commented file for --config.")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        section: its name; empty for those of the run itself.
        name: of the setting in its section.
        value: its default, as JSON has it.
        meaning: in words; empty where the section says it all.
        values: those that are allowed, if they are few.
    """

    section: str
    name: str
    value: Any
    meaning: str
    values: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name for ``--set``."""
        return f"{self.section}.{self.name}" if self.section else self.name


def settings(options: SettingsOptions) -> int:
    """``dkn-engine settings``: the list, or a file, on standard output.

    Raises:
        UserError: there is no such section.
    """
    config = PRESETS[options.preset]()
    sections = _sections(config)
    if options.section is not None:
        if options.section not in sections:
            known = [name for name in sections if name]
            meant = did_you_mean(options.section, known)
            raise UserError(f"no section {options.section!r}; known: {', '.join(known)}{meant}")
        sections = {options.section: sections[options.section]}
    elif options.toml:  # A file with other tables is read by 'analyze' alone.
        sections = _of_run(config)
    put((_as_toml if options.toml else _as_text)(sections))
    return 0


def all_settings(config: Config | None = None) -> list[Setting]:
    """Every setting of a run and of the analyses, with the values of a configuration."""
    sections = _sections(Config() if config is None else config)
    return [setting for name, one in sections.items() for setting in _settings(name, one)]


def _sections(config: Config) -> dict[str, Section]:
    """The run's own settings (empty name), its sections, and those of the analyses."""
    of_analyses = {name: analysis.section() for name, analysis in ANALYSES.items()}
    found = _of_run(config) | of_analyses | {"clusterers": ClusterersConfig()}
    return {name: section for key, one in found.items() for name, section in _with_parts(key, one)}


def _of_run(config: Config) -> dict[str, Section]:
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {"": config} | {name: one for name, one in own.items() if isinstance(one, Section)}


def _with_parts(name: str, section: Section) -> Iterator[tuple[str, Section]]:
    yield name, section
    for f in dataclasses.fields(section) if name else ():
        part = getattr(section, f.name)
        if isinstance(part, Section):
            yield from _with_parts(f"{name}.{f.name}", part)


def _settings(name: str, section: Section) -> Iterator[Setting]:
    meanings, hints, plain = _meanings(section), get_type_hints(type(section)), section.to_dict()
    for f in dataclasses.fields(section):
        if not isinstance(getattr(section, f.name), Section):
            kind = hints[f.name]
            values = get_args(kind) if get_origin(kind) is Literal else ()
            yield Setting(name, f.name, plain[f.name], _meaning(f.name, meanings), values)


def _meanings(section: Section) -> dict[str, str]:
    """What the section's docstring says of each attribute."""
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, attributes = (inspect.getdoc(type(section)) or "").partition("Attributes:\n")
    for line in attributes.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            names = entry[1].split(", ")
        text = (entry[2] if entry else line).strip()
        for name in names:
            found[name] = f"{found.get(name, '')} {text}".strip()
    return found


def _meaning(name: str, meanings: dict[str, str]) -> str:
    """What is said of a setting, if need be where another one is explained."""
    said = meanings.get(name)
    if said is None:
        other = next((o for o, text in meanings.items() if f"``{name}``" in text), None)
        said = f"see {other}: {meanings[other]}" if other else ""
    return said.replace("``", "")


def _about(section: Section) -> str:
    return (inspect.getdoc(type(section)) or "").partition("\n")[0]


def _as_text(sections: dict[str, Section]) -> str:
    parts = []
    for name, section in sections.items():
        parts.append(f"{_about(section)}\n")
        for setting in _settings(name, section):
            parts.append(f"  {setting.key}={json.dumps(setting.value)}")
            parts += [_wrapped(_words(setting), "      ")] if _words(setting) else []
        parts.append("")
    return "\n".join(parts)


def _words(setting: Setting) -> str:
    allowed = f" One of {', '.join(setting.values)}." if setting.values else ""
    meaning = setting.meaning[:1].upper() + setting.meaning[1:]
    return f"{meaning}{allowed}".strip()


def _wrapped(text: str, before: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=before, subsequent_indent=before)


def _as_toml(sections: dict[str, Section]) -> str:
    """A file that :meth:`Config.load` reads, if it holds the sections of a run alone.

    TOML has no null: such a setting is a comment.
    """
    parts = ["# Settings of dkn-engine, as they are by default: change what should differ.\n"]
    for name, section in sections.items():
        own = list(_settings(name, section))
        if not own:
            continue
        parts += [f"# {_about(section)}", *([f"[{name}]"] if name else [])]
        for setting in own:
            parts += [_wrapped(_words(setting), "# ")] if _words(setting) else []
            is_null = setting.value is None
            value = "none" if is_null else _toml(setting.value)
            parts.append(f"{'# ' if is_null else ''}{setting.name} = {value}")
        parts.append("")
    return "\n".join(parts)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
