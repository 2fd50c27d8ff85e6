"""Weights that can be read: floating, in one piece, each layer's on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.devices import device_of, is_offloaded

if TYPE_CHECKING:
    from torch import nn


def plain_weight(weight: Any) -> bool:
    """Whether a tensor holds its own numbers, in a dtype that multiplies as it is.

    Quantised weights are integers, subclasses of tensors, or 8-bit floats that want a scale.
    """
    import torch

    floating = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    return type(weight) in {torch.Tensor, torch.nn.Parameter} and weight.dtype in floating


def refuse_scattered_weights(model: nn.Module) -> None:
    """Refuse weights on several devices, or without data, where no hook brings them together.

    Raises:
        UnsupportedModelError: names what was found, where, and what to do.
    """
    name = type(model).__name__
    places: dict[str, str] = {}
    hooked = any("_hf_hook" in vars(module) for module in model.modules())
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(path, recurse=False):
            if parameter.device.type == "meta" and not is_offloaded(module):
                raise UnsupportedModelError(
                    f"{name}: expected all weights in memory, or offloaded by a device_map module "
                    f"by module; found {own!r} without its data (never loaded, or read with its "
                    "parent, preload_module_classes): load the model anew, with "
                    "dtype='bfloat16' where memory is short"
                )
            places.setdefault(str(device_of(module)), own)
    if len(places) > 1 and not hooked:
        found = ", ".join(f"{path!r} on {device}" for device, path in places.items())
        raise UnsupportedModelError(
            f"{name}: expected all weights on one device, or split by a device_map; found {found} "
            "without hooks of accelerate: load the model onto one device or with "
            "device_map='auto'"
        )


def require_whole(layer: nn.Module, name: str) -> None:
    """Refuse a decoder layer whose parts compute on several devices.

    Raises:
        UnsupportedModelError: names the layer, ``name``, and the devices.
    """
    if not any("_hf_hook" in vars(module) for module in layer.modules()):
        return  # :func:`refuse_scattered_weights` has found it on one device
    devices = {
        device_of(module): path
        for path, module in layer.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    if len(devices) > 1:
        found = ", ".join(f"{path!r} on {device}" for device, path in devices.items())
        raise UnsupportedModelError(
            f"{name}: expected each decoder layer as a whole on one device; found {found}: split "
            "between layers (no_split_module_classes, as device_map='auto' does)"
        )
