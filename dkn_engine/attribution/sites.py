"""Hook points inside an MLP whose activations are attributed, and the factor behind each."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from dkn_engine.errors import UnsupportedModelError
from dkn_engine.forward.prefill import Prefill
from dkn_engine.models.layout import Layout

# From these the MLP's output is linear, so a straight path stays straight in model space.
STRAIGHT = ("post", "up", "gate_act")


def require_site(layout: Layout, site: str) -> None:
    """Refuse a site that the model's MLPs do not have.

    Raises:
        UnsupportedModelError: says which part is missing.
    """
    if site in {"up", "gate_act"} and not layout.gated:
        raise UnsupportedModelError(
            f"site={site!r} needs a gated MLP (act(gate) * up); this model's MLP has no up "
            "projection: use site='post' or 'pre'"
        )
    if site != "post" and any(mlp.act is None for mlp in layout.mlps):
        raise UnsupportedModelError(
            f"site={site!r} needs the non-linearity to be a module of the MLP (act_fn, act, …); "
            "found none"
        )


def require_own_act(layout: Layout, site: str) -> None:
    """Refuse non-linearities that layers share, where a change would be one of all their layers.

    Raises:
        UnsupportedModelError: in the words of attribution.
    """
    if len({id(mlp.act) for mlp in layout.mlps}) < layout.n_layers:
        _refuse_act(site)


def _refuse_act(site: str) -> NoReturn:
    raise UnsupportedModelError(
        f"site={site!r} needs the non-linearity of each layer to be a module that runs once in "
        "a forward pass; found one that runs in no layer, or in several: use site='post'"
    )


@torch.no_grad()
def site_activation(layout: Layout, clean: Prefill, site: str) -> tuple[Tensor, Tensor | None]:
    """The clean activation ``[C, L, F]`` of a site, and the factor that stays at its clean value.

    ``post``: no factor. ``pre``: the up factor, if there is one. ``up``: the activated gate.
    ``gate_act``: the up factor.

    Raises:
        UnsupportedModelError: the model has no such site, or puts something else between the
            non-linearity and the down projection.
    """
    require_site(layout, site)
    if site == "post":
        return clean.post, None
    if clean.pre is None:
        _refuse_act(site)
    acts = [mlp.site_module("pre") for mlp in layout.mlps]
    home = clean.pre.device
    activated = torch.zeros_like(clean.pre)
    for i, (act, width) in enumerate(zip(acts, layout.widths, strict=True)):
        activated[:, i, :width] = act(clean.pre[:, i, :width]).to(home)
    _require_product(activated, clean, site)
    if site == "up":
        assert clean.up is not None
        return clean.up, activated
    return (clean.pre if site == "pre" else activated), clean.up


def _require_product(activated: Tensor, clean: Prefill, site: str) -> None:
    """Rounding of the two factors and of their product, with room for another order."""
    inner = activated if clean.up is None else activated * clean.up
    apart = float((inner - clean.post).norm() / clean.post.norm())
    if apart > 16 * torch.finfo(clean.post.dtype).eps:
        expected = "act(gate)" if clean.up is None else "act(gate) * up"
        raise UnsupportedModelError(
            f"site={site!r} expects {expected} at the input of the down projection; found "
            f"something {apart:.1e} of its length away: use site='post'"
        )
