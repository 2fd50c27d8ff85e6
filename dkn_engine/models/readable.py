"""Weights that can be read as they stand: floating, in one piece, on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError

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
    """Refuse quantised weights, and those that are not as a whole on one device.

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
    places: dict[str, str] = {}
    for path, parameter in model.named_parameters():
        places.setdefault(str(parameter.device), path)
    if "meta" in places:
        raise UnsupportedModelError(
            f"{name}: expected all weights in memory; found {places['meta']!r} without its data "
            "(offloaded to the CPU or a disk by a device_map, or never loaded): load the model "
            "onto one device, with dtype='bfloat16' where memory is short"
        )
    if len(places) > 1:
        found = ", ".join(f"{path!r} on {device}" for device, path in places.items())
        raise UnsupportedModelError(
            f"{name}: expected all weights on one device; found {found}: load the model without "
            "a device_map, with dtype='bfloat16' where memory is short"
        )
