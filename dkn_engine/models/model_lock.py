"""One thread at a time works on a model: whoever changes or reads it for a call holds its lock.

A call sets hooks, renames the attention in the configuration and may scale weights for its length.
Whatever two models share (modules, configurations, parameters) makes them one here: a wrapper
waits for what it wraps. Models that share nothing run side by side.

A thread that holds the lock takes it again freely, so calls nest in an intervention. Who nests
interventions on several models does so in one order, as with any locks.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn


class _Lock:
    """A re-entrant lock that another thread than its holder may release.

    A context may be left by another thread than entered it, as frameworks do with dependencies
    that yield; ``threading.RLock`` would then stay locked for good.
    """

    _made = 0

    def __init__(self) -> None:
        _Lock._made += 1
        self.number = _Lock._made
        self._changed = threading.Condition()
        self._holder: threading.Thread | None = None
        self._depth = 0

    def acquire(self) -> None:
        me = threading.current_thread()
        with self._changed:
            self._changed.wait_for(lambda: self._holder in {None, me})
            self._holder, self._depth = me, self._depth + 1

    def release(self) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._holder = None
                self._changed.notify()


# By identity, since configurations compare by content; the references keep nothing alive.
_locks: dict[int, tuple[weakref.ref[Any], _Lock]] = {}
_registry = threading.RLock()


@contextlib.contextmanager
def locked(model: nn.Module) -> Iterator[None]:
    """Hold the model for the length of the block; waits while another thread does.

    Args:
        model: any module; with it all its parts, and everything that holds one of them.

    Raises:
        UnsupportedModelError: it is no module.
    """
    _require_module(model)
    with contextlib.ExitStack() as held:
        for lock in _locks_of(model):
            lock.acquire()
            held.callback(lock.release)
        yield


def _require_module(model: Any) -> None:
    from torch import nn

    if not isinstance(model, nn.Module):
        kind = type(model)
        inside = any(k.__module__.startswith("nnsight.") for k in kind.__mro__)
        raise UnsupportedModelError(
            "model must be a causal or masked language model of transformers; found "
            f"{kind.__name__}"
            + (" of nnsight: give the model in it, wrapped._module" if inside else "")
        )


def _locks_of(model: nn.Module) -> list[_Lock]:
    """The locks of all parts, in the order that every thread takes them in; mostly one."""
    with _registry:
        parts = list(_parts(model))
        known = {id(part): lock for part in parts if (lock := _lock_of(part)) is not None}
        locks = sorted(set(known.values()), key=lambda lock: lock.number) or [_Lock()]
        for part in parts:
            if id(part) not in known:
                _remember(part, locks[0])
        return locks


def _parts(model: nn.Module) -> Iterator[Any]:
    """What a call on the model may change: modules, their configurations, parameters."""
    for module in model.modules():
        yield module
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            yield config
        yield from (p for p in module._parameters.values() if p is not None)


def _lock_of(part: Any) -> _Lock | None:
    reference, lock = _locks.get(id(part), (None, None))
    return lock if reference is not None and reference() is part else None


def _remember(part: Any, lock: _Lock) -> None:
    key = id(part)
    _locks[key] = (weakref.ref(part, lambda _: _locks.pop(key, None)), lock)
