"""How the activations of neurons change when one of them is suppressed, or by gates in general."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dkn_engine.degeneracy.edits_by_forwards import where_edits_act
from dkn_engine.degeneracy.gates import Gated
from dkn_engine.forward.contexts import Contexts, by_position
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.models.devices import at
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

# From activations [B, T, F] of a layer to what becomes of them.
_Change = Callable[[int, Tensor], Tensor]


@torch.no_grad()
def row_activations(engine: RowEngine, gated: Gated, gates: Tensor, contexts: Tensor) -> Tensor:
    """As :func:`forward_activations`, gates at the answer's positions, by rows."""
    layers, found = gated.layers(), gates.new_zeros(len(contexts), *gates.shape)

    def behind(layer: int, x: Tensor) -> Tensor:
        _note(found, gated, layer, x)
        return gated.let_through(layer, x, gates)

    rows = RowSet(contexts.unsqueeze(1), aligned=True)
    handles = list(_changing(engine.layout, layers, behind, found.shape[:2]))
    with hooks(handles), engine.active():
        hidden = engine.clean_rows(contexts, layers[0]).expand(-1, len(gates), -1)
        for layer in range(layers[0], layers[-1] + 1):
            hidden = engine.run_layer(layer, hidden, rows)
    return found


@torch.no_grad()
def forward_activations(
    model: nn.Module,
    layout: Layout,
    contexts: Contexts,
    gated: Gated,
    gates: Tensor,
    chosen: Tensor,
    positions: str,
) -> Tensor:
    """Activations of gated neurons, each before its own gate, where an answer is predicted.

    Args:
        gates: float ``[R, n]``, one setting of all gates a row.
        chosen: int64 ``[C]``, the contexts of a sequence.
        positions: where gates act, as edits do; see ``edits_by_forwards``.

    Returns:
        ``[C, R, n]``.
    """
    found = []
    # Where a gate acts at the position of one token only, each token has a forward of its own, as
    # in an encoder that is given others for each.
    apart = positions == "answer" or len(torch.unique(contexts.sequence[chosen])) > 1
    leader = chosen if apart else chosen[:1]
    mask = where_edits_act(contexts, leader, positions)
    inputs = contexts.inputs(contexts.sequence[leader])
    entry = torch.arange(len(leader), device=leader.device).expand(len(chosen))
    for setting in gates:
        own = gates.new_zeros(len(chosen), 1, len(setting))

        def behind(layer: int, x: Tensor) -> Tensor:
            own_rows = at(x, entry, contexts.position[chosen])
            _note(own, gated, layer, own_rows.unsqueeze(1))  # noqa: B023
            through = gated.let_through(layer, x, setting.unsqueeze(0))  # noqa: B023
            return torch.where(mask.unsqueeze(-1).to(x.device), through, x)

        with hooks(list(_changing(layout, gated.layers(), behind, mask.shape))):
            model(**inputs, use_cache=False)
        found.append(own)
    return torch.cat(found, dim=1)


def shares(activations: NDArray[np.float64], closed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each neuron's activation that goes with each other one, ``[n, n]``.

    Args:
        activations: ``[C, n + 1, n]``, with all gates open, then with each closed in turn.
        closed: ``[n]``, the activations behind closed gates.

    Returns:
        Of row a on column b: the size of b's change with a suppressed, over that of b's change
        with b itself suppressed, a mean over the C tokens; 0 where the latter is 0.
    """
    clean = activations[:, :1]
    change, own = np.abs(activations[:, 1:] - clean), np.abs(clean - closed)
    share = np.divide(change, own, out=np.zeros_like(change), where=own > 0)
    found: NDArray[np.float64] = share.mean(axis=0)
    np.fill_diagonal(found, 0.0)  # No neuron changes before its own gate.
    return found


def _note(found: Tensor, gated: Gated, layer: int, x: Tensor) -> None:
    """Keep a layer's gated neurons of ``x`` ``[C, R, F]`` in ``found`` ``[C, R, n]``."""
    at = np.flatnonzero(gated.neurons[:, 0] == layer)
    index = torch.from_numpy(gated.neurons[at, 1].astype(np.int64)).to(x.device)
    found[..., torch.from_numpy(at).to(found.device)] = x[..., index].to(found)


def _changing(
    layout: Layout, layers: list[int], change: _Change, shape: tuple[int, ...]
) -> Iterator[RemovableHandle]:
    """Hooks on the layers' down projections, whose inputs are ``[*shape, F]`` or flat."""

    def hook(layer: int, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = change(layer, by_position(args[0], torch.Size(shape)))
        return (x.reshape(args[0].shape), *args[1:])

    def of_layer(layer: int) -> Any:
        return lambda _module, args: hook(layer, args)

    for layer in layers:
        yield layout.mlps[layer].down.register_forward_pre_hook(of_layer(layer))
