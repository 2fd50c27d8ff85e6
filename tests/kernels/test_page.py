"""The page on kernels says what the table and the calculation say."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks import kernel_estimate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_the_calculation_on_the_page_is_the_one_that_runs() -> None:
    for name in kernel_estimate.MODELS:
        assert "\n".join(kernel_estimate.report(name)) in PAGE


def test_the_compiled_kernels_on_the_page_are_those_of_the_table() -> None:
    with (ROOT / "benchmarks" / "results" / "kernels.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    shown = [
        f"| `{row['kernel']}` | {row['registers']} | {int(row['shared_bytes']):,} | "
        f"{row['tensor_core']} | {row['vector_loads']} |"
        for row in table
        if (row["config"], row["dtype"], row["target"]) == ("llama-2-7b", "bfloat16", "sm_90")
    ]
    assert len(shown) == 8
    assert "\n".join(shown) in PAGE
    assert f"{len(table)} rows" in PAGE
