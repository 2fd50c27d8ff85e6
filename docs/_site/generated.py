"""Parts of pages that are written from the code: every setting, every command's help."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from dkn_engine.cli.list_settings import Setting, all_settings
from dkn_engine.cli.main import _parser

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def settings() -> str:
    """A table a section: name for --set, default, meaning."""
    parts: list[str] = []
    section = None
    for setting in all_settings():
        if setting.section != section:
            section = setting.section
            parts.append(
                f"\n## {section or 'The run'}\n\n| setting | default | meaning |\n|---|---|---|"
            )
        parts.append(_row(setting))
    return "\n".join(parts)


def _row(setting: Setting) -> str:
    allowed = f" One of {', '.join(f'`{value}`' for value in setting.values)}."
    meaning = (
        setting.meaning[:1].upper() + setting.meaning[1:] + (allowed if setting.values else "")
    )
    cell = meaning.strip().replace("|", r"\|").replace("*", r"\*").replace("<", r"\<")
    return f"| `{setting.key}` | `{json.dumps(setting.value)}` | {cell} |"


def commands() -> str:
    """Every command's own help."""
    parser = _parser()
    parts = [_help(parser)]
    for name, command in _children(parser):
        parts.append(f"## {name}\n\n{_help(command)}")
        parts += [f"### {name} {n}\n\n{_help(one)}" for n, one in _children(command)]
    return "\n\n".join(parts)


def _children(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [child for group in groups for child in group.choices.items()]


def _help(parser: argparse.ArgumentParser) -> str:
    return f"```text\n{parser.format_help().rstrip()}\n```"


PARTS = {"<!-- settings -->": settings, "<!-- commands -->": commands}


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put each part where a page has its mark."""
    for mark, write in PARTS.items():
        if mark in source[0]:
            source[0] = source[0].replace(mark, write())


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
