"""``dkn-engine info``, which imports nothing that a broken installation may lack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dkn_engine.cli.arguments import option, run_path, switch
from dkn_engine.cli.console import put


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Say what is installed, which backends can run, and what a run
    directory holds.
    """

    directory: str | Path | None = option(
        "directory",
        "A run directory, about which it is said, too.",
        default=None,
        nargs="?",
        metavar="DIR",
        type=run_path,
    )
    json: bool = switch("--json", "Print JSON.")


def info(options: InfoOptions) -> int:
    """``dkn-engine info``: what is installed, and what a run directory holds.

    Raises:
        RunDirectoryError: a directory was given that is not a run directory.
    """
    from dkn_engine.run.build_info import build_info

    information: dict[str, Any] = build_info()
    if options.directory is not None:
        from dkn_engine.store import count_done, read_manifest

        manifest = read_manifest(options.directory)
        done, total = count_done(options.directory)
        information["run_directory"] = {
            "path": str(options.directory),
            "model": manifest["model"]["name"],
            "facts_done": f"{done} of {total}",
            "config_hash": manifest["config_hash"],
            "created": manifest["created"],
        }
    if options.json:
        put(json.dumps(information, indent=2, default=str) + "\n")
        return 0
    rows = list(_flat(information))
    column = max((len(key) for key, _ in rows), default=0)
    put("".join(f"{key:<{column}}  {value}\n" for key, value in rows))
    return 0


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) or "none"))
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
