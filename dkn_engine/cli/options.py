"""Groups of options that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from dkn_engine.cli.arguments import folder, number, option, switch
from dkn_engine.cli.settings import PRESETS
from dkn_engine.facts import Format
from dkn_engine.models.load import DTYPES

FORMATS = get_args(Format)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command says."""

    json: bool = switch("--json", "print one JSON document, no table")
    quiet: bool = switch("--quiet", "no steps and no progress")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How facts and models are read."""

    format: str = option(
        "--format", "of the facts (default: auto)", default="auto", choices=FORMATS
    )
    limit: int | None = number("--limit", "use the first N facts only")
    device: str = option("--device", "auto, cpu, cuda, ... (default: auto)", default="auto")
    dtype: str = option(
        "--dtype", "of the weights (default: auto)", default="auto", choices=("auto", *DTYPES)
    )
    threads: int | None = number("--threads", "CPU threads of torch")
    strict: bool = switch("--strict", "stop at a fact that cannot be used")


def changes() -> Any:
    """A field of single settings."""
    return option(
        "--set",
        "change one setting, as in selection.threshold=0.1; may be repeated",
        default=(),
        action="append",
        metavar="KEY=VALUE",
    )


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a run reads: a model, facts and settings."""

    model: str = option("--model", "'demo', a hub id or a local path")
    facts: str = option("--facts", "'demo' or a file of facts")
    preset: str = option(
        "--preset",
        "of settings (default: default)",
        default="default",
        choices=tuple(PRESETS),
        group="settings",
    )
    config: str | None = option(
        "--config",
        "settings from a .toml or .json file",
        default=None,
        metavar="FILE",
        group="settings",
    )
    changes: tuple[str, ...] = changes()
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where analyses go, and how they are made."""

    out: Path = option("--out", "for runs, tables and the page", metavar="DIR", type=folder)
    draws: int | None = number("--draws", "of random neurons")
    workers: int = number(
        "--workers",
        "find, then make analyses, in N processes of --threads threads, 1 if not given",
        default=1,
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """What evolvability teaches."""

    new_facts: str | None = option(
        "--new-facts",
        "for evolvability to teach (default: made-up ones)",
        default=None,
        metavar="FILE",
    )
    new_format: str | None = option(
        "--new-format", "of the new facts (default: auto)", default=None, choices=FORMATS
    )
    checkpoint: bool = switch(
        "--checkpoint",
        "keep states of trainings, three times the size of the model, so that one that was "
        "stopped goes on",
    )
