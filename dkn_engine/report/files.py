"""``summary.md`` and ``summary.json`` of a run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dkn_engine.errors import RunDirectoryError
from dkn_engine.files.atomic import write_files
from dkn_engine.files.local_paths import local_path
from dkn_engine.files.plain_json import plain
from dkn_engine.report.render import render_markdown
from dkn_engine.report.summary import Summary
from dkn_engine.store import RunPath, place_of, read_manifest
from dkn_engine.types import FactResult

MARKDOWN, JSON = "summary.md", "summary.json"


def write_summary(
    directory: str | Path,
    results: Sequence[FactResult],
    summary: Summary,
    *,
    problems: Sequence[Mapping[str, Any]] = (),
) -> tuple[Path, Path]:
    """Write the summary as Markdown and JSON, atomically; returns both paths.

    Args:
        directory: a run directory, or any directory (the reports then name no model).
        results: in the order of the facts; as many as the table of ``summary.md`` has rows are
            enough.
        summary: of all results.
        problems: facts that the loader left out (``file``, ``line``, ``id``, ``reason``).

    Raises:
        OSError: the directory cannot be written.
    """
    directory = local_path(directory)
    manifest = manifest_of(directory)
    summary = replace(summary, n_left_out=len(problems))
    data = {
        "model": manifest and manifest["model"],
        "config_hash": manifest and manifest["config_hash"],
        "summary": summary.to_dict(),
        "problems": plain(list(problems)),
    }
    text = render_markdown(results, summary, manifest=manifest, problems=problems)
    files = {
        MARKDOWN: text.encode("utf-8", "backslashreplace"),
        JSON: (json.dumps(data, indent=2, allow_nan=False) + "\n").encode(),
    }
    write_files(directory, files)
    return directory / MARKDOWN, directory / JSON


def read_summary(directory: RunPath) -> dict[str, Any]:
    """What ``summary.json`` holds; empty if there is none that can be read."""
    try:
        data = json.loads(place_of(directory).read(JSON).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def manifest_of(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run directory; None of any other directory."""
    try:
        return read_manifest(directory)
    except RunDirectoryError:
        return None
