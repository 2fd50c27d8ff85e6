"""What CONTRIBUTING says about the tests is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_slowest_tests_that_are_named_exist() -> None:
    named = re.findall(r"^\| `([\w/]+\.py)::(\w+)` \| [\d.]+ \|", PAGE, re.MULTILINE)
    assert len(named) == 20
    lost = [
        f"{file}::{name}"
        for file, name in named
        if f"def {name}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8")
    ]
    assert lost == []
