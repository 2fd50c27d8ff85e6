"""The part of a model that reads text, of one that reads pictures or sounds beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.devices import input_device
from dkn_engine.models.guest import guest, hooks

if TYPE_CHECKING:
    from torch import nn

# The module that owns a stack of layers, the stack's name in it, the layers.
Stack = tuple["nn.Module", str, "list[nn.Module]"]


def stacks_of_text(model: nn.Module, stacks: list[Stack]) -> list[Stack]:
    """Those of some stacks of layers that a text goes through; the model runs once, on two tokens.

    Raises:
        UnsupportedModelError: the model does not take a text alone; says why.
    """
    import torch

    ran: set[int] = set()
    first = [layers[0] for _, _, layers in stacks]
    handles = [
        m.register_forward_pre_hook(lambda *_, i=i: ran.add(i), with_kwargs=True)
        for i, m in enumerate(first)
    ]
    ids: Any = torch.tensor([[1, 2]], device=input_device(model))
    with guest(model, grad=False), hooks(handles):
        try:
            model(input_ids=ids, use_cache=False).logits  # noqa: B018  # whether there are any
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            said = " ".join(str(error).split())
            raise UnsupportedModelError(
                f"{type(model).__name__}: expected a model that takes a text alone, by its "
                f"input_ids; found that it does not: {type(error).__name__}: {said}"
            ) from error
    return [stacks[i] for i in sorted(ran)]
