"""``dkn-engine completion``: a script for bash or zsh, made from the parser itself."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from dkn_engine.cli.arguments import option
from dkn_engine.cli.console import put

_SCRIPT = """\
_dkn_engine() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" path="" word words=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$path $word" in
            {commands}) path="$path $word" ;;
        esac
    done
    case "$path" in
{cases}
    esac
    COMPREPLY=( $(compgen -W "$words" -- "$current") )
    if [[ "$current" != -* && -n "$path" ]]; then
        COMPREPLY+=( $(compgen -f -- "$current") )
    fi
}}
complete -o filenames -F _dkn_engine dkn-engine
"""


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Print a script that completes commands, options and files in a shell."""

    shell: str = option(
        "shell", "The shell: bash or zsh.", metavar="SHELL", choices=("bash", "zsh")
    )


def completion(parser: argparse.ArgumentParser, options: CompletionOptions) -> int:
    """``dkn-engine completion``: the script on standard output."""
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" if options.shell == "zsh" else ""
    put(zsh + script(parser))
    return 0


def script(parser: argparse.ArgumentParser) -> str:
    """The script for bash; zsh runs it under ``bashcompinit``."""
    found = dict(_commands(parser, ""))
    commands = "|".join(shlex.quote(path) for path in found if path)
    cases = (
        f"        {shlex.quote(p)}) words={shlex.quote(' '.join(w))} ;;" for p, w in found.items()
    )
    return _SCRIPT.format(commands=commands, cases="\n".join(cases))


def _commands(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, list[str]]]:
    """Every command's path, as in " analyze all", with the words that may follow it."""
    words: list[str] = []
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        words += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            below |= action.choices
        elif not action.option_strings:
            words += action.choices or ()
    yield path, [*below, *words]
    for name, child in below.items():
        yield from _commands(child, f"{path} {name}")
