"""Dense projections: those that are known to multiply by their weight, add their bias, no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.devices import stored, with_data
from dkn_engine.models.readable import plain_weight
from dkn_engine.models.torch_internals import own_forward

if TYPE_CHECKING:
    import torch
    from torch import nn

_CONV1D = ("transformers.pytorch_utils", "Conv1D")


def dense_weight(module: nn.Module, *, kept: bool = False) -> torch.Tensor:
    """The weight of a dense projection as it lies, ``[out, in]`` or ``[in, out]`` (Conv1D).

    Where the module computes; ``kept``, where the weight is kept if that is elsewhere.

    Raises:
        UnsupportedModelError: it is none.
    """
    dense_shape(module)
    if kept:
        return stored(module, "weight")
    with with_data(module):
        dense: torch.Tensor = cast("torch.Tensor", module.weight).detach()
    return dense


def dense_shape(module: nn.Module) -> tuple[int, int]:
    """Of the weight of a dense projection as it lies.

    Raises:
        UnsupportedModelError: it is none.
    """
    weight: Any = getattr(module, "weight", None)
    if getattr(weight, "ndim", 0) != 2 or not plain_weight(weight):
        dtype = getattr(weight, "dtype", None)
        refuse_projection(f"{type(module).__name__} with weight of dtype {dtype}")
    require_dense(module)
    rows, columns = weight.shape
    return rows, columns


def require_dense(module: nn.Module) -> None:
    """Refuse a module that is not known to multiply by its weight and add its bias, and no more.

    Raises:
        UnsupportedModelError: says what it is and what to do about it.
    """
    if not is_dense(module):
        refuse_projection(_odd(module))


def refuse_projection(found: str) -> NoReturn:
    """Say what was found in the place of a dense projection."""
    raise UnsupportedModelError(
        f"expected a dense floating-point projection (Linear or Conv1D); found {found}"
    )


def _odd(module: nn.Module) -> str:
    """What a module is that multiplies by more than its weight, and what to do about it."""
    kind, active = type(module), getattr(module, "active_adapters", None)
    if of_peft(module):
        # It shows the weight of the layer it wraps and adds to its output, or takes its place.
        adapters = ", ".join(map(repr, active if isinstance(active, list) else [active]))
        return (
            f"an adapter of peft around it ({kind.__module__}.{kind.__name__}, active: {adapters}):"
            " put it into the weights with model = model.merge_and_unload(); where transformers "
            "has loaded it into a model without that method, move adapter_config.json and "
            "adapter_model.safetensors to a folder of their own, load the model without them, and "
            "model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()"
        )
    if hasattr(module, "n_experts"):
        return "a mixture of experts, whose weights lie together: change activations instead"
    return f"{kind.__name__}, whose forward is its own (it is of {kind.__module__})"


def is_dense(module: nn.Module) -> bool:
    """Whether the module is known to multiply by its weight and add its bias, and no more."""
    from torch import nn

    if own_forward(module) is not None:
        return False
    if not plain_weight(getattr(module, "weight", None)):
        return False
    kind = next(c for c in type(module).__mro__ if "forward" in vars(c))
    if kind is nn.Linear or (kind.__module__, kind.__name__) == _CONV1D:
        return True
    # Some models of transformers have a Linear of their own (Falcon); its quantised ones live
    # elsewhere.
    return isinstance(module, nn.Linear) and kind.__module__.startswith("transformers.models.")


def is_conv1d(module: nn.Module) -> bool:
    """True for Conv1D (weight ``[in, out]``); False for ``nn.Linear`` (weight ``[out, in]``)."""
    # A parametrization makes a subclass of it; a class of another library may share its name alone.
    return any((kind.__module__, kind.__name__) == _CONV1D for kind in type(module).__mro__)


def of_peft(module: nn.Module) -> bool:
    """Whether the module is one that peft has put in the place of another or around it."""
    return any(kind.__module__.startswith("peft.") for kind in type(module).__mro__)
