"""A model is a guest: whatever a stage changes on it is put back when the stage ends or raises.

A stage has the model for itself: see :mod:`dkn_engine.models.model_lock`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.experts import experts_shown
from dkn_engine.models.model_lock import locked

if TYPE_CHECKING:
    import torch
    from torch import nn


# By this bitsandbytes' 4-bit layers know that they may repack their weights on some CPUs, for good
# and for a product that has no gradient.
_PACKS = "support_avx512bf16_for_cpu"


@contextlib.contextmanager
def guest(model: nn.Module, *, grad: bool, shown: bool = True) -> Iterator[None]:
    """Run the block with the model in eval mode and no parameter gradients, then restore it.

    Training flags are kept module by module and ``requires_grad`` parameter by parameter, since a
    user may have frozen a part. A caller inside ``torch.inference_mode`` is served too. Another
    thread that wants the same model waits for the end of the block.

    Args:
        model: the user's model; its weights, hooks and gradients are not touched.
        grad: whether the block needs autograd (for activations; never for weights).
        shown: run mixtures of experts so that their activations can be seen and changed; else by
            the model's own function.

    Raises:
        UnsupportedModelError: the weights themselves are inference tensors.
    """
    import torch

    # inference_mode(False) also switches gradients back on, so set_grad_enabled comes inside it.
    with (
        locked(model),
        experts_shown(model) if shown else contextlib.nullcontext(),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
    ):
        # Walked once: on a small model the walk is a good part of a stage's time.
        modules = list(model.modules())
        # By place: a weight that is offloaded is another object after each forward.
        places = [(m._parameters, name) for m in modules for name in m._parameters]
        weights = [own[name] for own, name in places]
        if any(w is not None and w.is_inference() for w in weights):
            raise UnsupportedModelError(
                "model: its weights were created inside torch.inference_mode(), which autograd "
                "cannot use; load the model outside of it"
            )
        training = [m for m in modules if m.training]
        trainable = [(own, n) for own, n in places if getattr(own[n], "requires_grad", False)]
        packing = [m for m in modules if vars(m).get(_PACKS)]
        try:
            for module in packing:
                setattr(module, _PACKS, False)
            for module in training:
                module.training = False
            _require_grad(trainable, False)
            yield
        finally:
            for module in training:
                module.training = True
            for module in packing:
                setattr(module, _PACKS, True)
            _require_grad(trainable, True)


def _require_grad(places: list[tuple[dict[str, Any], str]], needed: bool) -> None:
    for parameters, name in places:
        if parameters.get(name) is not None:
            parameters[name].requires_grad_(needed)


@contextlib.contextmanager
def hooks(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove the given hook handles when the block ends, however it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def attention_implementation(model: nn.Module, name: str) -> Iterator[str]:
    """Switch every config of ``model`` to the registered attention ``name``; yields the old name.

    The attribute is set without transformers' setter, which would also rewrite sub-configs. Who
    does this holds the model's lock, or two threads would take each other's name for the old one.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(c): c for c in found if hasattr(c, "_attn_implementation_internal")}
    saved = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config, _ in saved:
            config._attn_implementation_internal = name
        yield next((before for _, before in saved), None) or "eager"
    finally:
        for config, before in saved:
            config._attn_implementation_internal = before
