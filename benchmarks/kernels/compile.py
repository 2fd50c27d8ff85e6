"""Compiles every kernel, as it would be launched, for GPUs that need not be there.

    python -m benchmarks.kernels.compile                 # all; writes results/kernels.csv
    python -m benchmarks.kernels.compile gpt2 --dry-run  # some cases, printed only

The operations' own launchers run on meta tensors, which have a shape and no memory; what they
would launch is compiled for each target. Registers and spills are the assembler's, the rest is
counted in the assembly. Nothing here is a measurement of speed.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver

from benchmarks.rows import records_csv, write_csv
from dkn_engine.ops._triton import blocks
from dkn_engine.ops.answer_probability import Head
from dkn_engine.ops.answer_probability import triton as answer_probability
from dkn_engine.ops.ig_accumulate import triton as ig_accumulate
from dkn_engine.ops.path_activation import triton as path_activation
from dkn_engine.ops.prefix_attention import triton as prefix_attention

RESULTS = Path(__file__).parents[1] / "results" / "kernels.csv"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Most shared memory that one program may have, in bytes.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
# Kernels whose work is a matrix product of the model's dtype.
PRODUCTS = {
    "ig_accumulate.pre_kernel",
    "ig_accumulate.project_kernel",
    "prefix_attention.forward_kernel",
    "prefix_attention.backward_kernel",
    "answer_probability.project_kernel",
    "answer_probability.collect_kernel",
}
_TENSOR_CORE = re.compile(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma|v_mfma_")
_VECTOR_LOAD = re.compile(
    r"ld\.global\S*\.v[24]|cp\.async\.cg\.shared\.global .*0x10|(?:global|buffer)_load_dwordx[24]"
)


@dataclass(frozen=True)
class Case:
    """The shapes of one model and of one batch of path points, and the dtypes to compile."""

    d: int
    f: int
    v: int
    heads: int
    kv_heads: int
    width: int
    kind: str
    gated: bool
    dtypes: tuple[str, ...]
    points: int = 128
    segments: int = 16
    rows: int = 96
    prefix: int = 24
    softcap: float | None = None
    transposed: bool = True  # w_out as nn.Linear stores it


CASES = {
    "llama-2-7b": Case(
        4096, 11008, 32000, 32, 32, 128, "silu", True, ("bfloat16", "float16", "float32")
    ),
    "llama-2-7b-one-point": Case(
        *(4096, 11008, 32000, 32, 32, 128, "silu", True, ("bfloat16",)),
        points=1,
        segments=1,
        rows=1,
        prefix=12,
    ),
    "gpt2": Case(
        *(768, 3072, 50257, 12, 12, 64, "gelu_tanh", False, ("float32", "bfloat16")),
        transposed=False,
    ),
    "gemma-2-2b": Case(
        2304, 9216, 256000, 8, 4, 256, "gelu_tanh", True, ("bfloat16",), softcap=30.0
    ),
    "pythia-410m": Case(1024, 4096, 50304, 16, 16, 64, "gelu_erf", False, ("float16",)),
    "opt-125m": Case(768, 3072, 50272, 12, 12, 64, "relu", False, ("float16",)),
    "odd": Case(331, 1537, 50257, 6, 2, 63, "gelu_erf", True, ("float32", "bfloat16")),
}


@dataclass(frozen=True)
class Row:
    """One compiled kernel; ``spills`` in bytes of memory a thread."""

    kernel: str
    config: str
    dtype: str
    target: str
    registers: int
    spills: int
    shared_bytes: int
    tensor_core: int
    vector_loads: int
    options: str
    compiler_versions: str


@dataclass(frozen=True)
class Compiled:
    """A kernel's name, what Triton made of it, and the launch's constants."""

    kernel: str
    result: Any
    options: dict[str, Any]


class _Stub:
    """A driver that knows its target and has no device."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.name)  # compiled kernels are kept by this number

    def get_current_stream(self, _device: int) -> int:
        return 0


@contextlib.contextmanager
def _compiling(name: str, found: dict[str, Compiled]) -> Iterator[None]:
    """Inside, launches are compiled for a target and kept, each that differs once."""

    def compile_only(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        compiled = kernel.warmup(*args, grid=grid, **blocks.OPTIONS, **options)
        operation = kernel.fn.__module__.split(".")[-2]
        found.setdefault(
            compiled.hash, Compiled(f"{operation}.{kernel.fn.__name__}", compiled, options)
        )

    hip = "6.0" if TARGETS[name].backend == "hip" else None
    before = driver._active
    driver.set_active(_Stub(name))
    try:
        with (
            mock.patch.object(torch.version, "hip", hip),
            mock.patch.object(blocks, "launch", compile_only),
        ):
            yield
    finally:
        driver._active = before


def compile_case(name: str, dtype: str, target: str) -> list[Row]:
    """Every kernel of a case, compiled."""
    if blocks.INTERPRETED.value:
        raise RuntimeError("TRITON_INTERPRET is set: a process that interprets cannot compile")
    found: dict[str, Compiled] = {}
    with _compiling(target, found):
        for site in ("post", "pre"):
            _ig_accumulate(CASES[name], getattr(torch, dtype), site)
        _path_activation(CASES[name], getattr(torch, dtype))
        _prefix_attention(CASES[name], getattr(torch, dtype))
        _answer_probability(CASES[name], getattr(torch, dtype))
    return [_row(compiled, name, dtype, target) for compiled in found.values()]


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _ig_accumulate(case: Case, dtype: torch.dtype, site: str) -> None:
    n, m, f = case.points, case.segments, case.f
    w_out = _meta(case.d, f, dtype=dtype).T if case.transposed else _meta(f, case.d, dtype=dtype)
    wide = _meta(m, f, dtype=torch.float32)
    up = _meta(m, f, dtype=dtype) if case.gated else None
    path = (_meta(n, dtype=torch.float64), wide, wide, up, case.kind) if site == "pre" else None
    ig_accumulate.ig_accumulate(
        _meta(n, case.d, dtype=dtype),
        _meta(2, n, dtype=torch.float32),
        _meta(n, dtype=torch.int64),
        w_out,
        wide,
        path,
    )


def _path_activation(case: Case, dtype: torch.dtype) -> None:
    wide = _meta(case.points, case.f, dtype=torch.float32)
    up = _meta(case.points, case.f, dtype=dtype) if case.gated else None
    alphas = _meta(case.points, dtype=torch.float64)
    path_activation.path_activation(alphas, wide, wide, up, case.kind)


def _prefix_attention(case: Case, dtype: torch.dtype) -> None:
    c, t = 8, case.prefix
    query = _meta(c, case.heads, case.rows, case.width, dtype=dtype).requires_grad_(True)
    own = [_meta(c, case.kv_heads, case.rows, case.width, dtype=dtype) for _ in range(2)]
    prefix = [_meta(c, case.kv_heads, t, case.width, dtype=dtype) for _ in range(2)]
    visible = _meta(c, t, dtype=torch.bool)
    own_key, own_value = own
    key, value = prefix
    out = prefix_attention.prefix_attention(
        query, own_key, own_value, key, value, visible, 0.1, case.softcap
    )
    torch.autograd.grad(out, query, grad_outputs=torch.empty_like(out))


def _answer_probability(case: Case, dtype: torch.dtype) -> None:
    head = Head(lambda x: x, _meta(case.v, case.d, dtype=dtype), softcap=case.softcap)
    n = 8 * case.rows
    answer_probability.answer_probability(
        head,
        _meta(n, case.d, dtype=dtype),
        _meta(n, dtype=torch.int64),
        "probability",
        gradient=True,
    )


def _row(compiled: Compiled, config: str, dtype: str, target: str) -> Row:
    result = compiled.result
    assembly = result.asm["amdgcn" if TARGETS[target].backend == "hip" else "ptx"]
    registers, spills, assembler = _resources(assembly, target)
    return Row(
        compiled.kernel,
        config,
        dtype,
        target,
        registers,
        spills,
        result.metadata.shared,
        len(_TENSOR_CORE.findall(assembly)),
        len(_VECTOR_LOAD.findall(assembly)),
        " ".join(f"{k}={v}" for k, v in compiled.options.items()),
        f"triton {triton.__version__}, {assembler}",
    )


def _resources(assembly: str, target: str) -> tuple[int, int, str]:
    """Registers a thread, bytes a thread spilled to memory, and the assembler."""
    if TARGETS[target].backend == "hip":
        # Scratch memory: a scalar register that spills goes to a vector register's lane instead.
        numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly))
        registers, scratch = (int(numbers[k]) for k in ("vgpr_count", "private_segment_fixed_size"))
        return registers, scratch, "LLVM of triton"
    tool = get_ptxas(TARGETS[target].arch)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(assembly, encoding="utf-8")
        arch = re.search(r"\.target (\w+)", assembly)
        assert arch is not None
        command = [tool.path, "-v", f"--gpu-name={arch[1]}", str(source), "-o", f"{folder}/out"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.search(r"Used (\d+) registers", log)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    assert used is not None
    return int(used[1]), sum(map(int, spilled)), f"ptxas {tool.version}"


def problems(row: Row) -> list[str]:
    """Why a compiled kernel is not fit for its target; empty if it is."""
    found = []
    if row.spills:
        found.append(f"spills {row.spills}")
    if row.shared_bytes > SHARED_LIMIT[row.target]:
        found.append(f"{row.shared_bytes} bytes of shared memory, {SHARED_LIMIT[row.target]} there")
    short = row.dtype in {"float16", "bfloat16"}
    if short and row.kernel in PRODUCTS and not row.tensor_core:
        found.append("no tensor-core instruction")
    return found


def _line(row: Row) -> str:
    return (
        f"{row.kernel:38} {row.config:20} {row.dtype:8} {row.target:6} {row.registers:4} registers"
        f" {row.spills:5} spilled {row.shared_bytes:6} shared {row.tensor_core:4} tensor core"
        f" {row.vector_loads:3} vector loads "
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all unless given")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.cases or CASES:
        for dtype in CASES[name].dtypes:
            for target in TARGETS:
                for row in compile_case(name, dtype, target):
                    rows.append(row)
                    print(_line(row), "; ".join(problems(row)) or "ok", flush=True)
    if not options.dry_run and not options.cases:
        write_csv(RESULTS, records_csv([asdict(row) for row in rows]))
        print(f"{len(rows)} rows in {RESULTS}")
    return 1 if any(problems(row) for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
