"""Which experts tokens go to, kept at what it was in a clean pass.

Where routing follows a changed activation, the answer's probability jumps as an expert takes the
place of another, which no integral of gradients sees.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dkn_engine.forward.contexts import Contexts
from dkn_engine.models.devices import at
from dkn_engine.models.layout import Layout

# By layer the experts int64 [C, K] that each context's position goes to, and their weights [C, K].
Routing = Mapping[int, tuple[Tensor, Tensor]]


def last_routing(layout: Layout, contexts: Contexts) -> Routing:
    """The routing of a chunk's contexts in the pass over it that was the model's last."""
    found = {}
    for layer, mixture in layout.mixtures.items():
        assert mixture.routing is not None
        experts, weights = mixture.routing
        found[layer] = (contexts.rows(experts), contexts.rows(weights))
    return found


@contextlib.contextmanager
def frozen(
    layout: Layout, routing: Routing | None, token: Tensor, context: Tensor
) -> Iterator[None]:
    """In the block tokens ``[n]``, numbered through the batch, go where their contexts went.

    All others, and with None all, go where the router sends them.
    """
    if not routing:
        yield
        return
    try:
        for layer, (experts, weights) in routing.items():
            layout.mixtures[layer].forced = (token, at(experts, context), at(weights, context))
        yield
    finally:
        for mixture in layout.mixtures.values():
            mixture.forced = None


def reached(layout: Layout, routing: Routing, n_contexts: int) -> Tensor:
    """bool ``[C, L, F]``: the neurons of experts that a context's position goes to, and shared."""
    found = torch.ones(n_contexts, layout.n_layers, layout.width, dtype=torch.bool)
    for layer, (experts, _) in routing.items():
        mixture = layout.mixtures[layer]
        hit = torch.zeros(n_contexts, mixture.n_experts, dtype=torch.bool)
        hit.scatter_(1, experts.cpu(), True)
        found[:, layer, : mixture.n_experts * mixture.n_each] = hit.repeat_interleave(
            mixture.n_each, dim=1
        )
    return found
