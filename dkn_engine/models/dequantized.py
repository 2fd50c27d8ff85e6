"""A quantised model with plain projections, whose numbers its own library unpacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.readable import plain_weight

if TYPE_CHECKING:
    import torch
    from torch import nn


def dequantized(model: Any, dtype: torch.dtype) -> Any:
    """The model, changed in place to plain weights of ``dtype``; a plain one as it is.

    Raises:
        UnsupportedModelError: names a module that keeps its weight in a way that nobody unpacks.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        try:
            model = quantizer.dequantize(model, dtype=dtype)
        except NotImplementedError:  # of libraries whose weights unpack themselves
            for path, module in list(model.named_modules()):
                if hasattr(getattr(module, "weight", None), "dequantize"):
                    _replace(model, path, _plain(module, dtype))
            quantizer.remove_quantization_config(model)
        model.to(dtype)
    for path, parameter in model.named_parameters():
        if not plain_weight(parameter):
            raise UnsupportedModelError(
                f"dequantize=True: expected weights that their library unpacks; found {path!r}, "
                f"{type(parameter).__name__} of {parameter.dtype}: load the model as it was before "
                "quantization"
            )
    return model


def _plain(module: Any, dtype: torch.dtype) -> nn.Linear | None:
    from torch import nn

    weight = module.weight
    if plain_weight(weight):  # every tensor has the method
        return None
    bias = getattr(module, "bias", None)
    n_out, n_in = weight.shape
    new = nn.Linear(n_in, n_out, bias=bias is not None, device=weight.device, dtype=dtype)
    new.weight = nn.Parameter(weight.dequantize().detach().to(dtype))
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().to(dtype))
    return new


def _replace(model: nn.Module, path: str, by: nn.Module | None) -> None:
    if by is not None:
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, by)
