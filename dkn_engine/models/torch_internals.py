"""Modules whose forward is not their class's: what tools set on an instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Where modules of torch and transformers stand: they pass gradients on and treat all rows alike.
KNOWN = ("torch.nn.", "transformers.models.", "transformers.activations", "transformers.pytorch_")


def own_forward(module: nn.Module) -> Any:
    """The forward that stands on this very module and may do what it likes; None if there is none.

    nnsight's, which it leaves on every module of a model that it has wrapped, is not counted: it
    hands each call on to the class's.
    """
    found = vars(module).get("forward")
    return None if found is None or _of_nnsight(found) else found


def class_forward(module: nn.Module) -> Callable[..., Any]:
    """The module's forward, past nnsight's, whose signature is not that of a bound method."""
    found = vars(module).get("forward")
    if found is not None and _of_nnsight(found):
        return found.__wrapped__.__get__(module)  # type: ignore[no-any-return]  # a bound method
    return module.forward


def _of_nnsight(forward: Any) -> bool:
    return type(forward).__module__.startswith("nnsight.") and hasattr(forward, "__wrapped__")
