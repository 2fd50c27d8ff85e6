"""Kernels compiled for GPUs that are not there: what ``make kernels`` does, for a few cases."""

from __future__ import annotations

import csv
from dataclasses import fields, replace

import pytest

from tests.ops.kernels.cases import INTERPRETED

pytest.importorskip("triton", reason="triton has no wheel for this system")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="a process that interprets cannot compile")

# Heads of every width, gated and not, both 16-bit dtypes; the rest of the cases is in the table.
SUBSET = [
    ("llama-2-7b", "bfloat16", "sm_90"),
    ("llama-2-7b-one-point", "bfloat16", "sm_90"),
    ("gpt2", "float32", "sm_80"),
    ("pythia-410m", "float16", "sm_80"),
    ("gemma-2-2b", "bfloat16", "gfx942"),
]


@pytest.mark.parametrize(("case", "dtype", "target"), SUBSET)
def test_every_kernel_fits_its_target(case: str, dtype: str, target: str) -> None:
    """No spills, no more shared memory than there is, tensor cores where the dtype has them."""
    from benchmarks.kernels import compile as kernels

    rows = kernels.compile_case(case, dtype, target)
    assert {row.kernel for row in rows} >= kernels.PRODUCTS
    assert {row.kernel: kernels.problems(row) for row in rows if kernels.problems(row)} == {}


def test_what_is_unfit_is_said() -> None:
    from benchmarks.kernels import compile as kernels

    fit = kernels.Row(
        *("ig_accumulate.pre_kernel", "gpt2", "bfloat16", "sm_90"), 128, 0, 1024, 4, 4, "", ""
    )
    assert kernels.problems(fit) == []
    assert kernels.problems(replace(fit, spills=8)) == ["spills 8"]
    assert kernels.problems(replace(fit, tensor_core=0)) == ["no tensor-core instruction"]
    assert kernels.problems(replace(fit, tensor_core=0, dtype="float32")) == []
    too_much = replace(fit, shared_bytes=300_000)
    assert kernels.problems(too_much) == ["300000 bytes of shared memory, 232448 there"]


def test_the_committed_table_holds_every_case_and_nothing_unfit() -> None:
    from benchmarks.kernels import compile as kernels

    with kernels.RESULTS.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == [f.name for f in fields(kernels.Row)]
    expected = {
        (case, dtype, target)
        for case, shapes in kernels.CASES.items()
        for dtype in shapes.dtypes
        for target in kernels.TARGETS
    }
    assert {(r["config"], r["dtype"], r["target"]) for r in table} == expected
    numbers = ("registers", "spills", "shared_bytes", "tensor_core", "vector_loads")
    for line in table:
        row = kernels.Row(**{k: int(v) if k in numbers else v for k, v in line.items()})  # type: ignore[arg-type]  # read from text
        assert kernels.problems(row) == [], line
        shapes = kernels.CASES[row.config]
        if shapes.d % 16 == 0:
            assert row.vector_loads > 0, line
