"""What torch tells of a module only by private names: hooks, compilation, a forward of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dkn_engine.models.devices import moves_only

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where modules of torch and transformers stand: they pass gradients on and treat all rows alike.
KNOWN = ("torch.nn.", "transformers.models.", "transformers.activations", "transformers.pytorch_")


def own_forward(module: nn.Module) -> Any:
    """The forward that stands on this very module and may do what it likes; None if there is none.

    nnsight's, which it leaves on every module of a model that it has wrapped, is not counted: it
    hands each call on to the class's. Nor is accelerate's, if it only moves what goes in and out.
    """
    found = vars(module).get("forward")
    if found is None or _of_nnsight(found):
        return None
    return None if _of_accelerate(found) and moves_only(module) else found


def class_forward(module: nn.Module) -> Callable[..., Any]:
    """The module's forward, past nnsight's, whose signature is not that of a bound method."""
    found = vars(module).get("forward")
    if found is not None and _of_nnsight(found):
        return found.__wrapped__.__get__(module)  # type: ignore[no-any-return]  # a bound method
    return module.forward


def _of_accelerate(forward: Any) -> bool:
    return getattr(getattr(forward, "func", None), "__module__", None) == "accelerate.hooks"


def _of_nnsight(forward: Any) -> bool:
    return type(forward).__module__.startswith("nnsight.") and hasattr(forward, "__wrapped__")


def forward_hooks(module: nn.Module) -> list[Any]:
    """The module's forward pre-hooks and forward hooks."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def output_hooks(module: nn.Module) -> list[Any]:
    """Forward hooks, which may change what the module gives: its own and those on all modules."""
    from torch.nn.modules.module import _global_forward_hooks

    return [*module._forward_hooks.values(), *_global_forward_hooks.values()]


def backward_hooks(module: nn.Module) -> list[Any]:
    """The module's backward hooks and backward pre-hooks."""
    return [*module._backward_hooks.values(), *module._backward_pre_hooks.values()]


def global_forward_hooks() -> list[Any]:
    """Forward pre-hooks and forward hooks that are set on all modules at once."""
    from torch.nn.modules import module

    before, after = module._global_forward_pre_hooks, module._global_forward_hooks
    return [*before.values(), *after.values()]


def global_backward_hooks() -> list[Any]:
    """Backward hooks and backward pre-hooks that are set on all modules at once."""
    from torch.nn.modules import module

    after, before = module._global_backward_hooks, module._global_backward_pre_hooks
    return [*after.values(), *before.values()]


def floating_tensors(nested: Any) -> list[Tensor]:
    """The floating tensors in nested arguments, in order."""
    import torch

    if isinstance(nested, torch.Tensor):
        return [nested] if nested.is_floating_point() else []
    items = nested.values() if isinstance(nested, dict) else nested
    nests = isinstance(nested, dict | list | tuple)
    return [tensor for item in items for tensor in floating_tensors(item)] if nests else []


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Child modules by name, one that has several names under each of them."""
    return module._modules


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has changed this module in place."""
    own = own_forward(module)
    return module._compiled_call_impl is not None or hasattr(own, "_torchdynamo_orig_callable")


@contextlib.contextmanager
def replaced(owner: nn.Module, name: str, by: nn.Module) -> Iterator[None]:
    """Exchange a child module for the length of the block, whatever its owner thinks of that."""
    before = owner._modules[name]
    owner._modules[name] = by
    try:
        yield
    finally:
        owner._modules[name] = before
