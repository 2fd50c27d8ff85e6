"""Gates in front of neurons, and the derivative of an answer's log-probability by each of them.

A gate g lets a neuron's activation x through as ``m + g (x - m)``, m being what suppression makes
of it: 1 leaves it as it is, 0 suppresses it. With some gates closed one backward pass tells, to
first order, what closing or opening each of the others would do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dkn_engine.degeneracy.edits import Edit
from dkn_engine.degeneracy.edits_by_forwards import where_edits_act
from dkn_engine.forward.contexts import Contexts, by_position
from dkn_engine.forward.log_probability import log_probabilities
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from dkn_engine.neurons import encode
from dkn_engine.ops.answer_probability import answer_probability

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, eq=False)
class Gated:
    """Neurons with gates.

    Attributes:
        neurons: int32 ``[n, 2]``, distinct.
        closed: float64 ``[n]``, the activations behind closed gates.
    """

    neurons: NDArray[np.int32]
    closed: NDArray[np.float64]

    def layers(self) -> list[int]:
        """Those that have a neuron, ascending."""
        return [int(layer) for layer in np.unique(self.neurons[:, 0])]

    def let_through(self, layer: int, x: Tensor, gates: Tensor) -> Tensor:
        """Activations ``[..., R, F]`` of a layer behind the gates ``[R, n]`` of each row."""
        at = np.flatnonzero(self.neurons[:, 0] == layer)
        index = torch.from_numpy(self.neurons[at, 1].astype(np.int64)).to(x.device)
        closed = torch.from_numpy(self.closed[at]).to(x)
        gate = gates.to(x)[:, torch.from_numpy(at).to(x.device)]
        activation = x[..., index]
        through = closed + gate * (activation - closed)
        return x.index_copy(x.ndim - 1, index, through)


def joined(closed: Sequence[Edit]) -> tuple[Gated, list[NDArray[np.int64]]]:
    """Gates in front of all neurons of several suppressions, and each one's columns among them.

    Raises:
        ValueError: two of them make different things of one neuron.
    """
    neurons = np.concatenate([one.neurons for one in closed])
    offset = np.concatenate([one.offset for one in closed])
    _, first, column = np.unique(encode(neurons), return_index=True, return_inverse=True)
    if not np.array_equal(offset, offset[first[column]], equal_nan=True):
        raise ValueError("closed gates must make the same of a neuron wherever it is; got others")
    ends = np.cumsum([len(one.neurons) for one in closed])[:-1]
    return Gated(neurons[first], offset[first]), np.split(column, ends)


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings of gates, and the contexts whose log-probabilities each one adds up.

    Attributes:
        gates: float ``[R, n]``, one setting of all gates a row.
        setting: int64 ``[N]``, ascending, of each pair of a setting and a context.
        context: int64 ``[N]``, of each pair: the answer's tokens, those of one sequence a setting.
    """

    gates: Tensor
    setting: Tensor
    context: Tensor

    def summed(self, log_p: Tensor) -> Tensor:
        """From pairs ``[N]`` to settings ``[R]``."""
        setting = self.setting.to(log_p.device)
        return log_p.new_zeros(len(self.gates)).index_add(0, setting, log_p)


def row_gates(engine: RowEngine, gated: Gated, asked: Settings) -> tuple[Tensor, Tensor]:
    """As :func:`forward_gates` with ``positions="answer"``, by rows: see ``edits_by_rows``."""
    n_layers, layers = engine.layout.n_layers, gated.layers()
    first = min(layers, default=n_layers - 1)
    rows = RowSet(asked.context.unsqueeze(0), aligned=False)
    gates = asked.gates.requires_grad_(True)
    of_row = gates[asked.setting]
    with engine.active():
        hidden = engine.clean_rows(asked.context, first).transpose(0, 1)
        for layer in range(first, n_layers):
            handles = _behind_gates(engine.layout, layer, gated, of_row) if layer in layers else []
            with hooks(handles):
                hidden = engine.run_layer(layer, hidden, rows)
        log_p, slope = answer_probability(
            engine.tail,
            hidden[0].detach(),
            engine.contexts.target[asked.context],
            objective="log_probability",
            gradient=True,
            backend=engine.backend,
        )
    assert slope is not None
    return asked.summed(log_p), _gradient(hidden, gates, slope.unsqueeze(0))


def forward_gates(
    model: nn.Module,
    layout: Layout,
    contexts: Contexts,
    gated: Gated,
    asked: Settings,
    positions: str,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of answers behind gates, and their derivatives, by full forwards.

    Args:
        positions: where gates act, as edits do; see ``edits_by_forwards``.

    Returns:
        The log-probability ``[R]``, summed over a setting's contexts, and its derivatives
        ``[R, n]``.
    """
    gates = asked.gates.requires_grad_(True)
    # Where an edit acts at the position of one token only, each token has a forward of its own; so
    # it has in an encoder that is given others for each.
    number = torch.arange(len(asked.context), device=asked.context.device)
    shared = asked.setting * len(contexts.ids) + contexts.sequence[asked.context]
    forwards, entry = torch.unique(number if positions == "answer" else shared, return_inverse=True)
    first = number.new_full(forwards.shape, len(number)).scatter_reduce(0, entry, number, "amin")
    leader, of_entry = asked.context[first], gates[asked.setting[first]]
    mask = where_edits_act(contexts, leader, positions)
    handles = [
        handle
        for layer in gated.layers()
        for handle in _behind_gates(layout, layer, gated, of_entry, mask)
    ]
    with hooks(handles):
        inputs = contexts.inputs(contexts.sequence[leader])
        logits = position_logits(model, inputs, entry, contexts.position[asked.context])
    log_p, _ = log_probabilities(logits, contexts.target[asked.context])
    total = asked.summed(log_p)
    return total.detach(), _gradient(total, gates, torch.ones_like(total))


def _gradient(of: Tensor, gates: Tensor, outer: Tensor) -> Tensor:
    if not of.requires_grad:  # no neurons, so no gates on the way
        return torch.zeros_like(gates)
    return torch.autograd.grad(of, gates, outer)[0]


def _behind_gates(
    layout: Layout, layer: int, gated: Gated, gates: Tensor, mask: Tensor | None = None
) -> list[RemovableHandle]:
    """Put gates ``[R, n]`` in front of a layer's down projection.

    ``mask``, bool ``[R, T]``, says at which positions of full forwards; None for rows.
    """

    def hook(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if mask is None:
            return (gated.let_through(layer, args[0], gates), *args[1:])
        x = by_position(args[0], mask.shape)  # [R, T, F]
        through = gated.let_through(layer, x.transpose(0, 1), gates)
        x = torch.where(mask.unsqueeze(-1).to(x.device), through.transpose(0, 1), x)
        return (x.reshape(args[0].shape), *args[1:])

    return [layout.mlps[layer].down.register_forward_pre_hook(hook)]
