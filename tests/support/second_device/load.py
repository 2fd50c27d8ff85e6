"""Two devices, ``two:0`` and ``two:1``, that refuse to be mixed: see ``device.cpp``.

They are for the whole process and its first backward pass, so that tests use them in one of their
own (:mod:`tests.support.second_device.checks`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import torch
from torch.utils import backend_registration

SOURCE = Path(__file__).with_name("device.cpp")
BUILD = Path(__file__).parents[3] / "build" / "second_device"


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++"))


def library() -> Path:
    """The compiled extension; made once for a source and a version of torch."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    made = BUILD / f"{key}.so"
    if not made.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        torch_files, own = Path(torch.__file__).parent, made.with_suffix(f".{os.getpid()}")
        libraries = torch_files / "lib"
        # Without optimisation: 8 s instead of 30.
        subprocess.run(
            [
                *(str(compiler()), "-std=c++20", "-O0", "-fPIC", "-shared"),
                *("-I", str(torch_files / "include"), str(SOURCE), "-o", str(own)),
                *("-L", str(libraries), "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}"),
            ],
            check=True,
        )
        own.replace(made)
    return made


def load() -> None:
    """Give this process the devices."""
    torch.ops.load_library(str(library()))
    backend_registration.rename_privateuse1_backend("two")
    module = types.ModuleType("torch.two")
    answers = {
        "device_count": lambda: 2,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "empty_cache": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "manual_seed_all": lambda _seed: None,
        "get_rng_state": lambda _device: torch.get_rng_state(),
        "set_rng_state": lambda _state, _device: None,
    }
    vars(module).update(answers)
    torch._register_device_module("two", module)
    sys.modules["torch.two"] = module
