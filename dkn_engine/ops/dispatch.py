"""Which implementation of an operation runs: an explicit request runs or raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from dkn_engine.errors import BackendError

F = TypeVar("F", bound=Callable[..., object])


def choose(operation: str, backend: str, implementations: Mapping[str, F]) -> F:
    """The implementation of ``operation`` for ``backend`` (``auto``: the first listed).

    Raises:
        BackendError: ``backend`` has no implementation of this operation; names those there are.
    """
    if backend == "auto":
        return next(iter(implementations.values()))
    if backend not in implementations:
        known = ", ".join(implementations)
        raise BackendError(f"{operation}: backend {backend!r} is not available; found: {known}")
    return implementations[backend]
