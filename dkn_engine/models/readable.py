"""Weights that can be read: floating, in one piece, each layer's on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.devices import device_of, is_offloaded

if TYPE_CHECKING:
    import torch
    from torch import nn

# What quantised weights are packed into; masks are bool, positions int64.
_PACKED = {"int8", "uint8", "int16", "int32", "float8_e4m3fn", "float8_e5m2"}


def plain_weight(weight: Any) -> bool:
    """Whether a tensor holds its own numbers, in a dtype that multiplies as it is.

    Quantised weights are integers, subclasses of tensors, or 8-bit floats that want a scale.
    """
    import torch

    floating = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    return type(weight) in {torch.Tensor, torch.nn.Parameter} and weight.dtype in floating


def refuse_unreadable_weights(model: nn.Module) -> None:
    """Refuse quantised weights, and those that lie where no hook of accelerate brings them from.

    Raises:
        UnsupportedModelError: names what was found, where, and what to do.
    """
    name = type(model).__name__
    _refuse_quantised(model, name)
    _refuse_scattered(model, name)


def _refuse_quantised(model: nn.Module, name: str) -> None:
    from torch import nn

    found = getattr(getattr(model, "config", None), "quantization_config", None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
        method = getattr(method, "value", method)
        # Of a GGUF file what could not stay packed was made plain; what is packed is found below.
        if method != "gguf":
            _refuse(name, f"a model quantised by {method}")
    for path, parameter in model.named_parameters():
        if not plain_weight(parameter):
            _refuse(name, f"{path!r}, {type(parameter).__name__} of {_short(parameter)}")
    for path, buffer in model.named_buffers():
        if buffer.numel() > 1 and _short(buffer) in _PACKED:
            _refuse(name, f"{path!r}, a buffer of {_short(buffer)}")
    for path, module in model.named_modules():
        packed = getattr(module, "weight", None)
        if callable(packed) and not isinstance(packed, nn.Module):  # a parametrization's is one
            _refuse(name, f"{path!r}, {type(module).__name__} with a packed weight")


def _short(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _refuse(name: str, found: str) -> None:
    raise UnsupportedModelError(
        f"{name}: expected plain floating-point weights; found {found}: load the model without "
        "quantization, with dtype='bfloat16' where memory is short"
    )


def _refuse_scattered(model: nn.Module, name: str) -> None:
    """Require one device, or hooks that bring each module's weights and inputs together."""
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
