"""Every interval on the pages of the analyses is in the tables of docs/example."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
# A page, the tables that it is about, and where its part on the demo model ends.
PAGES = [
    ("robustness", ("robustness",), None),
    ("fact_checking", ("fact_check",), None),
    ("evolvability", ("evolvability",), None),
    ("complexity", ("complexity", "sharing"), "\n## Models\n"),
]
INTERVAL = re.compile(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]")
Triple = tuple[float, float, float]


def intervals_of(names: tuple[str, ...]) -> Iterator[Triple]:
    """Means, and medians, with their limits; of differences also the other way round."""
    for name in names:
        for file in (f"{name}.csv", f"{name}_comparisons.csv"):
            with (DOCS / "example" / file).open(encoding="utf-8", newline="") as table:
                for row in csv.DictReader(table):
                    low, high = float(row["ci_low"]), float(row["ci_high"])
                    for value in filter(None, (row["mean"], row.get("median"))):
                        yield float(value), low, high
                        yield -float(value), -high, -low


@pytest.mark.parametrize(("page", "names", "end"), PAGES, ids=[page for page, _, _ in PAGES])
def test_intervals_are_of_the_committed_tables(
    page: str, names: tuple[str, ...], end: str | None
) -> None:
    text = (DOCS / f"{page}.md").read_text("utf-8").partition(end or "\0")[0]
    shown = INTERVAL.findall(" ".join(text.replace("−", "-").split()))
    assert len(shown) > 15
    measured = list(intervals_of(names))
    for texts in shown:
        near = [0.51 * 10 ** -len(t.partition(".")[2]) for t in texts]
        assert any(
            all(abs(float(t) - v) <= e for t, v, e in zip(texts, values, near, strict=True))
            for values in measured
        ), f"{page}: {texts[0]} [{texts[1]}, {texts[2]}]"
