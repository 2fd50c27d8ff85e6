"""ALBERT runs one layer again and again: each of its runs becomes a layer of the model's own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from dkn_engine.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_GROUPS = "albert_layer_groups"


def separate_layers(model: nn.Module) -> None:
    """Give each run of a layer that ALBERT shares modules of its own, with the shared weights.

    In place; what the model computes stays the same, and no weight is copied. A neuron is then one
    of the F of one run, so that layer and index tell it. Other models are left alone.

    Raises:
        UserError: accelerate has put hooks around the layer that is shared.
    """
    from torch import nn

    config: Any = getattr(model, "config", None)
    for module in model.modules():
        groups: Any = getattr(module, _GROUPS, None)
        if groups is None:
            continue
        if any("_hf_hook" in vars(part) for part in groups.modules()):
            raise UserError("its layers share their weights: load it without device_map")
        n = config.num_hidden_layers
        runs = [groups[int(i / (n / len(groups)))] for i in range(n)]
        setattr(module, _GROUPS, nn.ModuleList(map(_with_same_weights, runs)))
        config.num_hidden_groups = n


def _with_same_weights(module: nn.Module) -> nn.Module:
    """A copy of the modules around the very parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
