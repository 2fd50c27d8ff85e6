"""Where the kernels' tests run, and what their outputs hold before a kernel writes them.

Triton reads TRITON_INTERPRET when a kernel is decorated, and a process that interprets cannot
compile. So nothing sets it here: ``test_interpreted.py`` runs this folder once more in a process
that has it from its start. In the suite's own process the same tests run compiled, on a GPU, and
``test_compile.py`` compiles without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.ops.kernels.cases import INTERPRETED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kernel_device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True, scope="session")
def _language_replaced_once() -> Iterator[None]:
    """The interpreter puts its own operations into Triton's language once, and leaves them there.

    Left alone it searches the language anew for what to replace whenever a kernel calls a helper,
    which takes a third of the time; a process that interprets has no use for the others.
    """
    if not INTERPRETED:
        yield
        return
    interpreter: Any = pytest.importorskip("triton.runtime.interpreter")
    replace, scopes = interpreter._patch_lang, {}

    def once(kernel: Callable[..., None]) -> Any:
        module = kernel.__globals__["__name__"]  # whose names for the language are replaced
        if module not in scopes:
            scopes[module] = replace(kernel)
        return scopes[module]

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang", once)
        patches.setattr(interpreter._LangPatchScope, "restore", lambda _scope: None)
        yield


@pytest.fixture
def kernel_device() -> str:
    """The device on which kernels run here."""
    pytest.importorskip("triton", reason="triton has no wheel for this system")
    if INTERPRETED:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; test_interpreted.py runs it interpreted")
    return "cuda"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that torch gives out unwritten is full of NaN, so that a gap in an output shows."""

    def poisoned(make: Any) -> Any:
        def with_nan(*args: Any, **kw: Any) -> torch.Tensor:
            x: torch.Tensor = make(*args, **kw)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return with_nan

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
