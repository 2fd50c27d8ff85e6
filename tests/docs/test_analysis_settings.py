"""The page of the analyses' settings lists each of them with its default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dkn_engine.analysis.config import ANALYSES, ClusterersConfig

PAGE = Path(__file__).parents[2] / "docs" / "analysis_settings.md"


def settings(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from settings(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", json.dumps(value)


def test_every_setting_is_listed_with_its_default() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| `"]
    listed = [tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in lines]
    sections = {name: analysis.section for name, analysis in ANALYSES.items()}
    expected = [
        setting
        for name, section in (sections | {"clusterers": ClusterersConfig}).items()
        for setting in settings(section().to_dict(), name)
    ]
    assert listed == expected
