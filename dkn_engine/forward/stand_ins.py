"""Modules that stand in for layers which need not run."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from dkn_engine.models.torch_internals import class_forward


def beside_nothing(hidden: Tensor, n: int) -> Any:
    """Hidden states as the first of a tuple of ``n``, the others None; 0: alone."""
    return (hidden, *[None] * (n - 1)) if n else hidden


class HandsOn(nn.Module):
    """In the place of a layer: hands its input on, or given hidden states.

    What the layer has beside its forward, such as the kind of its attention, by which a model
    chooses what to give it, is the layer's own.

    Args:
        layer: in whose place.
        in_tuples: see :class:`dkn_engine.forward.prefill.Prefill`.

    Attributes:
        hidden: what is handed on, if not the input.
        call: what it was last called with.
    """

    def __init__(self, layer: nn.Module, *, in_tuples: int) -> None:
        super().__init__()
        self._layer = (layer,)  # not a child, so that no one finds its parameters here
        self.in_tuples = in_tuples
        self.hidden: Tensor | None = None
        self.call: inspect.BoundArguments | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.call = inspect.signature(class_forward(self._layer[0])).bind(*args, **kwargs)
        hidden = self.hidden
        if hidden is None:
            hidden = next(iter(self.call.arguments.values()))
        return beside_nothing(hidden, self.in_tuples)
