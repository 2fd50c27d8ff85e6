"""Groups of options that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from dkn_engine.cli.arguments import device_map, folder, number, option, switch
from dkn_engine.cli.settings import PRESETS
from dkn_engine.facts import Format
from dkn_engine.models.load import DEVICE_MAPS, DTYPES, DeviceMap

FORMATS = get_args(Format)
FACTS = (
    "The facts: a file (JSON lines, CSV, TSV, or a data set as published), a folder of ParaRel or "
    "LAMA, or one of the packaged lists demo, demo-unselected, demo-new."
)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a command says."""

    TITLE: ClassVar = "output"

    json: bool = switch("--json", "Print one JSON document instead of a table.")
    quiet: bool = switch("--quiet", "Say nothing of steps and progress, only what is wrong.")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How facts and models are read."""

    TITLE: ClassVar = "reading facts and models"

    format: str = option(
        "--format",
        f"The format of the facts, if their content does not tell it: {', '.join(FORMATS)} "
        "(default: auto).",
        default="auto",
        choices=FORMATS,
        metavar="FORMAT",
    )
    limit: int | None = number("--limit", "Use the first N facts only.")
    strict: bool = switch("--strict", "Stop at the first fact that cannot be used.")
    device: str = option(
        "--device",
        "Where the model computes: auto (CUDA if there is a device), cpu, cuda, cuda:1, ... "
        "(default: auto).",
        default="auto",
    )
    dtype: str = option(
        "--dtype",
        f"The type of the weights: auto (float32 on the CPU, the checkpoint's own elsewhere), "
        f"{', '.join(DTYPES)} (default: auto).",
        default="auto",
        choices=("auto", *DTYPES),
        metavar="DTYPE",
    )
    device_map: DeviceMap | None = option(
        "--device-map",
        "Spread the model's layers over devices, with accelerate: "
        f"{', '.join(DEVICE_MAPS)}, or a JSON file with a device for each module, disk among them. "
        "In one process.",
        default=None,
        type=device_map,
        metavar="MAP",
    )
    dequantize: bool = switch(
        "--dequantize", "Unpack quantised weights to plain ones, at their full size."
    )
    threads: int | None = number("--threads", "Let torch use N threads of the CPU.")


def changes() -> Any:
    """A field of single settings."""
    return option(
        "--set",
        "Change one setting, as in selection.threshold=0.1; may be repeated. 'dkn-engine settings' "
        "lists them all.",
        default=(),
        action="append",
        metavar="KEY=VALUE",
    )


def required_facts() -> Any:
    """A field of facts that must be given."""
    return option("--facts", FACTS, metavar="FACTS")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of a run."""

    TITLE: ClassVar = "settings"

    preset: str = option(
        "--preset",
        "Where settings start from: default, paper (the paper's values where it gives them) or "
        "released (the published code).",
        default="default",
        choices=tuple(PRESETS),
        metavar="NAME",
        group="settings",
    )
    config: str | None = option(
        "--config",
        "Read settings from a .toml or .json file instead; 'dkn-engine settings --toml' makes one.",
        default=None,
        metavar="FILE",
        group="settings",
    )
    changes: tuple[str, ...] = changes()


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a run reads beside its facts: a model and settings."""

    model: str = option("--model", "The model: demo, a hub id or a local folder.", metavar="MODEL")
    settings: Settings
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where analyses go, and how they are made."""

    TITLE: ClassVar = "work"

    out: Path | None = option(
        "--out",
        "The folder for runs, tables and the page, new or to continue (default: "
        "runs/analyses-MODELS-FACTS).",
        default=None,
        metavar="DIR",
        type=folder,
    )
    draws: int | None = number("--draws", "Draw random neurons N times.")
    workers: int = number(
        "--workers",
        "Find DKNs, then make the analyses, in N processes of --threads threads each (default: 1).",
        default=1,
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """What evolvability teaches."""

    TITLE: ClassVar = "fine-tuning (evolvability)"

    new_facts: str | None = option(
        "--new-facts",
        "The facts that are taught (default: packaged ones that are made up).",
        default=None,
        metavar="FILE",
    )
    new_format: str | None = option(
        "--new-format",
        "The format of the new facts, if their content does not tell it.",
        default=None,
        choices=FORMATS,
        metavar="FORMAT",
    )
    checkpoint: bool = switch(
        "--checkpoint",
        "Keep states of trainings, three times the size of the model, so that one that was "
        "stopped goes on.",
    )
