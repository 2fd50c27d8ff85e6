"""Neurons under the names that TransformerLens and nnsight have for MLP activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dkn_engine.errors import UnsupportedModelError, UserError
from dkn_engine.models.layout import Mlp, find_layout
from dkn_engine.models.model_lock import locked

if TYPE_CHECKING:
    from torch import nn

SITES = ("post", "pre", "up", "gate_act")
_TRANSFORMER_LENS = {"post": "hook_post", "pre": "hook_pre", "up": "hook_pre_linear"}


def transformer_lens_names(neurons: ArrayLike, site: str = "post") -> dict[str, list[int]]:
    """Hook points and the indices in their last axis, as in ``{"blocks.3.mlp.hook_post": [7]}``.

    Args:
        neurons: int ``[n, 2]``, columns layer and index.
        site: ``post`` (``hook_post``), ``pre`` (``hook_pre``) or, of a gated MLP, ``up``
            (``hook_pre_linear``).

    Raises:
        UserError: an argument has a value that is not allowed; ``gate_act`` has no hook point.
    """
    if site not in _TRANSFORMER_LENS:
        known = ", ".join(_TRANSFORMER_LENS)
        raise UserError(f"site must be one of {known}, which have a hook point; got {site!r}")
    return {
        f"blocks.{layer}.mlp.{_TRANSFORMER_LENS[site]}": indices
        for layer, indices in _by_layer(neurons).items()
    }


def nnsight_names(model: nn.Module, neurons: ArrayLike, site: str = "post") -> dict[str, list[int]]:
    """Module paths and the indices in their last axis, for nnsight's wrapped models.

    For example ``{"model.layers.3.mlp.down_proj.input": [7]}``. Where a model computes gate and up
    by one projection, the indices of ``up`` are those in its output, of width 2F.

    Args:
        model: a causal decoder of transformers, whose modules give the names, before or after
            nnsight has wrapped it; or what nnsight has made of it.
        neurons: int ``[n, 2]``, columns layer and index.
        site: ``post``, ``pre``, and of a gated MLP ``up`` and ``gate_act``.

    Raises:
        UserError: an argument has a value that is not allowed, or a neuron is not in the model.
        UnsupportedModelError: the model is not a known decoder, or has no such site.
    """
    if site not in SITES:
        raise UserError(f"site must be one of {', '.join(SITES)}; got {site!r}")
    model = _unwrapped(model)
    with locked(model):
        layout = find_layout(model)
        names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, list[int]] = {}
    for layer, indices in _by_layer(neurons).items():
        if (wrong := layout.missing(np.array([[layer, max(indices)]]))) is not None:
            raise UserError(wrong)
        mlp = layout.mlps[layer]
        module, side = _place(mlp, site)
        shift = layout.widths[layer] if site == "up" and mlp.fused else 0
        found[f"{names[id(module)]}.{side}"] = [i + shift for i in indices]
    return found


def _unwrapped(model: Any) -> nn.Module:
    """The model itself, of nnsight's wrapper around it."""
    inside = any(kind.__module__.startswith("nnsight.") for kind in type(model).__mro__)
    return getattr(model, "_module", model) if inside else model  # type: ignore[no-any-return]


def _place(mlp: Mlp, site: str) -> tuple[nn.Module, str]:
    """The module at whose input or output the site lies."""
    if mlp.block is not None:
        raise UnsupportedModelError(
            "expected a dense MLP; found that activations lie in no module of a mixture of experts"
        )
    if site == "post":
        return mlp.down, "input"
    if site == "pre":
        # Not the non-linearity's input: some models share that module between layers.
        return mlp.gate, "output"
    if mlp.up is None:
        raise UnsupportedModelError(
            f"site={site!r} needs a gated MLP; this model's MLP has no up projection"
        )
    if site == "up":
        return mlp.up, "output"
    if mlp.act is None:
        raise UnsupportedModelError(
            "site='gate_act' needs the non-linearity to be a module of the MLP; found none"
        )
    return mlp.act, "output"


def _by_layer(neurons: ArrayLike) -> dict[int, list[int]]:
    """Indices by layer, layers ascending, indices in the order given."""
    table = np.asarray(neurons)
    if table.size == 0:
        return {}
    if table.dtype.kind not in "iu" or table.ndim != 2 or table.shape[1] != 2 or table.min() < 0:
        raise UserError(
            "neurons must be integers [n, 2], columns layer and index, from 0; got "
            f"{table.dtype} {list(table.shape)}"
        )
    layers = np.unique(table[:, 0]).tolist()
    return {layer: table[table[:, 0] == layer, 1].tolist() for layer in layers}
