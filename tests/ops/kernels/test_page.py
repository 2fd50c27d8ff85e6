"""The page on kernels says what the table and the calculation say."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.kernels import estimate as kernel_estimate
from dkn_engine.config import AttributionConfig
from dkn_engine.forward.batch_rows import BUDGET, most_edits, most_path_points

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_the_calculation_on_the_page_is_the_one_that_runs() -> None:
    for name in kernel_estimate.MODELS:
        assert "\n".join(kernel_estimate.report(name)) in PAGE


def test_the_bytes_on_the_page_are_counted_as_it_says() -> None:
    for name in (*kernel_estimate.MODELS, *kernel_estimate.MEASURED):
        assert "\n".join(kernel_estimate.memory(name)) in PAGE


def test_the_counted_bytes_bound_the_measured_ones() -> None:
    with (ROOT / "benchmarks" / "results" / "memory.csv").open(encoding="utf-8") as file:
        measured = {row["case"]: float(row["median"]) for row in csv.DictReader(file)}
    (shape,) = kernel_estimate.MEASURED.values()
    for rows in (64, 256):
        counted = (kernel_estimate.fixed_bytes(shape) + rows * kernel_estimate.row_bytes(shape)) / (
            1 << 20
        )
        assert 0.5 * counted < measured[f"8 facts, rows_per_batch {rows}"] < counted


def layout_of(shape: kernel_estimate.Shape, *devices: str) -> Any:
    places = tuple(map(torch.device, devices))
    return SimpleNamespace(n_layers=shape.layers, d_model=shape.d, width=shape.f, devices=places)


def test_auto_is_what_the_engine_takes() -> None:
    """As in the engine: the same formula for a row, the same budget and ends."""
    assert kernel_estimate.BUDGET == BUDGET
    dtypes = {2: torch.bfloat16, 4: torch.float32}
    for shape in kernel_estimate.MODELS.values():
        layout = layout_of(shape, "cpu")
        model = torch.nn.Linear(1, 1, dtype=dtypes[shape.size])
        taken = most_path_points(AttributionConfig(), model, layout)
        assert taken == kernel_estimate.auto_rows(shape)
        assert most_edits(AttributionConfig(), model, layout) == 1024
        few = AttributionConfig(rows_per_batch=7)
        assert most_path_points(few, model, layout) == most_edits(few, model, layout) == 7


def test_auto_takes_a_quarter_of_the_memory_that_is_free_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = kernel_estimate.MODELS["LLaMA-2-7B, bfloat16"]
    # Split over two cards, of which the one with less free memory counts.
    layout = layout_of(shape, "cuda:0", "cuda:1")
    model = torch.nn.Linear(1, 1, dtype=torch.bfloat16)

    def taken(free: int, rows: Any = most_path_points) -> int:
        each = {torch.device(f"cuda:{i}"): (free + more, 80 << 30) for i, more in ((0, 9), (1, 0))}
        monkeypatch.setattr(torch.cuda, "mem_get_info", each.__getitem__)
        found: int = rows(AttributionConfig(), model, layout)
        return found

    # As many as on a CPU where less is free; and no more than 4,096.
    assert taken(0) == taken(4 << 30) == kernel_estimate.auto_rows(shape)
    assert taken(8 << 30) == pytest.approx(2 * taken(0), abs=1)
    assert taken(66 << 30) == 4096
    # Edits, which keep nothing for gradients, are as many, and never fewer than on a CPU.
    assert taken(0, most_edits) == 1024
    assert taken(66 << 30, most_edits) == 4096


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
