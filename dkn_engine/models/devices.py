"""Where a model's modules compute: one device, several, or with weights that wait elsewhere.

accelerate splits a model over devices and offloads its weights to the CPU or a disk by hooks of
its own, which wrap a module's forward: they bring its weights and what it takes to one device. What
the engine reads or computes beside the model is moved likewise, by what stands here.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_HOOKS = "accelerate.hooks"
_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def moves_only(module: nn.Module) -> bool:
    """Whether all that accelerate has put around a module's forward brings tensors to a device."""
    hook = vars(module).get("_hf_hook")
    every = getattr(hook, "hooks", [hook])
    return all(type(h).__module__ == _HOOKS and hasattr(h, "io_same_device") for h in every)


def is_offloaded(module: nn.Module) -> bool:
    """Whether the module's own weights are read anew, by a hook of its own, whenever it runs."""
    return bool(getattr(vars(module).get("_hf_hook"), "offload", False))


def warn_if_offloaded(model: nn.Module) -> None:
    """Say once of a model that reading its weights anew costs time."""
    found = [path for path, module in model.named_modules() if is_offloaded(module)]
    if found and model not in _told:
        _told.add(model)
        warnings.warn(
            f"{type(model).__name__}: weights of {len(found)} modules are offloaded ({found[0]!r} "
            "and so on) and read anew in every pass: slower, same results",
            stacklevel=3,
        )


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: where its first weight or buffer is, or is brought to when it runs.

    Raises:
        ValueError: it has none.
    """
    import torch

    for part in module.modules():
        for kept in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if is_offloaded(part):
                hook: Any = vars(part)["_hf_hook"]
                return torch.device(hook.execution_device)
            return kept.device
    raise ValueError(f"expected a module with weights; got {type(module).__name__}")


def beside(module: nn.Module, x: Tensor) -> Tensor:
    """``x`` where a module computes; where it is if the module shows no tensor of its own."""
    shown = any(True for t in (module.parameters(), module.buffers()) for _ in t)
    return x.to(device_of(module)) if shown else x


def input_device(model: nn.Module) -> torch.device:
    """Where tokens enter a model, and its logits come back to."""
    return device_of(model.get_input_embeddings())  # type: ignore[operator]  # of transformers


@contextlib.contextmanager
def with_data(module: nn.Module) -> Iterator[None]:
    """Have a module's own weights in memory for the length of the block, if they are offloaded.

    A tensor that is taken in the block stays as it is behind it.
    """
    own = module.parameters(recurse=False)
    if not is_offloaded(module) or all(p.device.type != "meta" for p in own):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


class _Copies(dict[str, "Tensor"]):
    """A module's weights in memory, which its hook reads in place of those offloaded."""

    def __init__(self, module: nn.Module, hook: Any) -> None:
        own = module.named_parameters(recurse=False)
        kept = hook.weights_map
        super().__init__({n: kept[n].detach().to(p.dtype, copy=True) for n, p in own})
        self.before = {"weights_map": kept, "tied_params_map": hook.tied_params_map}
        self.users = 0


@contextlib.contextmanager
def writable(module: nn.Module) -> Iterator[None]:
    """Let what :func:`stored` gives be changed, and the module run with it, inside the block.

    Offloaded weights are as they were behind it, whatever was done to them; others are not copied.
    """
    if not is_offloaded(module):
        yield
        return
    hook: Any = vars(module)["_hf_hook"]
    if not isinstance(hook.weights_map, _Copies):
        hook.weights_map = _Copies(module, hook)
        # By addresses, which copies may have from tied weights that are no longer there.
        hook.tied_params_map = None
    copies = hook.weights_map
    copies.users += 1
    try:
        yield
    finally:
        copies.users -= 1
        if not copies.users:
            vars(hook).update(copies.before)


def stored(module: nn.Module, name: str) -> Tensor:
    """A weight of a module where it is kept, which need not be where the module computes."""
    hook: Any = vars(module).get("_hf_hook")
    kept = hook.weights_map[name] if is_offloaded(module) else getattr(module, name)
    return cast("Tensor", kept.detach())


def at(x: Tensor, *index: Tensor) -> Tensor:
    """``x[index]``, wherever the indices are."""
    return x[tuple(i.to(x.device) for i in index)]


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name, as ``named_parameters`` of the model on one device has them.

    With their data, a module at a time; what offloading or splitting has made two of counts once.
    """
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    names: set[str] = set()
    kept: set[int] = set()  # parameters that the model holds, by identity
    for path, module in model.named_modules():
        hooked, offloaded = "_hf_hook" in vars(module), is_offloaded(module)
        with with_data(module):
            for name, parameter in module.named_parameters(path, recurse=False):
                if id(parameter) not in kept and not (hooked and tied.get(name) in names):
                    yield name, parameter
                names.add(name)
                if not offloaded:
                    kept.add(id(parameter))
