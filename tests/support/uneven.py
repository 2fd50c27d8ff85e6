"""Tiny decoders whose layers' MLPs have different sizes, and the same ones padded with nothing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.tiny import WIDTH, down_of, tiny

WIDTHS = (12, WIDTH, 20)  # neurons of each layer


def uneven(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Any, Any]:
    """A model, and one of equal layers that computes the same.

    What a layer of the second has beyond its width in the first writes nothing.
    """
    padded = tiny(name, dtype, seed)
    with torch.no_grad():
        for layer, width in enumerate(WIDTHS):
            down: Any = down_of(name, padded, layer)
            (down.weight if is_conv1d(down) else down.weight.T)[width:] = 0
    model = copy.deepcopy(padded)
    for layer, width in enumerate(WIDTHS):
        down = down_of(name, model, layer)
        path = next(n for n, m in model.named_modules() if m is down)
        parent = model.get_submodule(path.rpartition(".")[0])
        for module in [m for m in parent.children() if sizes(m)]:
            n_in, n_out = sizes(module)
            if module is down:
                keep(module, 1, torch.arange(width))
            elif n_out in {WIDTH, 2 * WIDTH} and n_in != WIDTH:
                both = [torch.arange(first, first + width) for first in range(0, n_out, WIDTH)]
                keep(module, 0, torch.cat(both))
    return model, padded


def is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def sizes(module: Any) -> tuple[int, ...]:
    """What a projection reads and gives; nothing of other modules."""
    if is_conv1d(module):
        return tuple(module.weight.shape)
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else ()


@torch.no_grad()
def keep(module: Any, side: int, index: Tensor) -> None:
    """Only some of what a projection gives (``side`` 0) or reads (1)."""
    axis = 1 - side if is_conv1d(module) else side
    module.weight = nn.Parameter(module.weight.index_select(axis, index))
    if side == 0 and module.bias is not None:
        module.bias = nn.Parameter(module.bias[index])
    if is_conv1d(module):
        module.nf = module.weight.shape[1]
    else:
        module.out_features, module.in_features = module.weight.shape
