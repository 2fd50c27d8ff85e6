"""Modules of unknown kinds may compute without autograd, which would lose gradients silently."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from dkn_engine.models.readable import plain_weight
from dkn_engine.models.torch_internals import KNOWN, floating_tensors


def refuse_cut_gradients(layout: Layout, ids: Tensor) -> None:
    """Refuse a model in which a module of an unknown class takes a gradient's way and ends it.

    A quantised layer that runs under ``no_grad`` still gives the right probabilities; the residual
    stream carries gradients past it, and the scores would be wrong without a word. One forward of
    two tokens shows it. Models of known modules only are not run.

    Args:
        layout: the decoder, with gradients enabled.
        ids: tokens ``[B, T]`` of which the first few are used.

    Raises:
        UnsupportedModelError: names the module.
    """
    unknown = [
        (f"{layout.stack}[{i}].{path}", module)
        for i, layer in enumerate(layout.layers)
        for path, module in layer.named_modules()
        if not type(module).__module__.startswith(KNOWN) or _packed(module)
    ]
    if not unknown:
        return
    cut: list[str] = []

    def begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0].detach().requires_grad_(True), *args[1:]), kwargs
        hidden = kwargs["hidden_states"].detach().requires_grad_(True)
        return args, {**kwargs, "hidden_states": hidden}

    def watch(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given, gave = floating_tensors([args, kwargs]), floating_tensors(output)
        reached, passed = (any(t.requires_grad for t in tensors) for tensors in (given, gave))
        if reached and gave and not passed:
            cut.append(f"{type(module).__name__} at {path}")

    handles = [
        m.register_forward_hook(partial(watch, path), with_kwargs=True) for path, m in unknown
    ]
    handles.append(layout.layers[0].register_forward_pre_hook(begin, with_kwargs=True))
    with hooks(handles), torch.enable_grad():
        whole = layout.base if layout.alone else layout.model  # an encoder's takes no tokens
        whole(**layout.inputs(ids[:1, :2]), use_cache=False)
    if cut:
        raise UnsupportedModelError(
            f"expected every module to pass gradients on to its input; found {cut[0]}, which does "
            "not (is it quantised?): load the model with "
            "dkn.load_model(name, dequantize=True), or without quantization"
        )


def _packed(module: nn.Module) -> bool:
    """Whether a known module multiplies by what another library has put in its weight's place."""
    return not all(map(plain_weight, module.parameters(recurse=False)))
