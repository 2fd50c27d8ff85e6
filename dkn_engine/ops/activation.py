"""Which non-linearities the kernels know, by the module that a model uses for them."""

from __future__ import annotations

from torch import nn

from dkn_engine.models.torch_internals import forward_hooks, own_forward

# By exact class of transformers, not by probing: a function may leave its kind where no probe is
# (a clipped GELU), and a subclass may compute something else. A test compares each class named here
# with its kind. FastGELU writes sqrt(2 / pi) with ten digits, which is the same in float32.
_KINDS = {
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "GELUActivation": "gelu_erf",
    "SiLUActivation": "silu",
}


def kernel_kind(act: nn.Module) -> str | None:
    """``gelu_tanh``, ``gelu_erf``, ``silu`` or ``relu``; None for any other module.

    One with hooks or a forward of its own may compute something else than its class.
    """
    if forward_hooks(act) or own_forward(act) is not None:
        return None
    if type(act) is nn.GELU:
        return "gelu_tanh" if act.approximate == "tanh" else "gelu_erf"
    if type(act) is nn.SiLU:
        return "silu"
    if type(act) is nn.ReLU:
        return "relu"
    # transformers is not imported for this: a module of its comes from where it is imported.
    if type(act).__module__ == "transformers.activations":
        return _KINDS.get(type(act).__name__)
    return None


def kernel_refusal(act: nn.Module) -> str | None:
    """Why the kernels cannot compute ``act``, or None."""
    if kernel_kind(act) is not None:
        return None
    known = "gelu (tanh or erf), silu and relu of torch.nn and transformers"
    return f"expected a non-linearity among {known}, without hooks; found {type(act).__name__}"
