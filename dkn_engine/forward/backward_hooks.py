"""Backward hooks of the user's would change the gradients that attribution takes, or fail in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.torch_internals import backward_hooks, global_backward_hooks

if TYPE_CHECKING:
    from torch import nn


def refuse_backward_hooks(model: nn.Module) -> None:
    """Refuse a model with backward hooks, or backward pre-hooks, on a module or on all of them.

    Scores are taken from gradients, some of them not at the module but past it: a hook that
    changes gradients would count in part, and one that only looks would see None. Nothing is run.
    Hooks set on tensors (``tensor.register_hook``) cannot be seen from the modules.

    Raises:
        UnsupportedModelError: names the module and the hook.
    """
    for hook in global_backward_hooks():
        _refuse("all modules", hook)
    for path, module in model.named_modules():
        for hook in backward_hooks(module):
            _refuse(repr(path) if path else type(module).__name__, hook)


def _refuse(where: str, hook: object) -> None:
    name = getattr(hook, "__qualname__", type(hook).__name__)
    raise UnsupportedModelError(
        f"expected gradients that are the model's own; found a backward hook on {where} ({name}), "
        "which attribution would run: remove it with its handle, handle.remove(), or attribute "
        "before it is set"
    )
