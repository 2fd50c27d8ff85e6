"""Integrated gradients by activation patching: hooks and full forwards, for any decoder.

Slower than the sweep, with the same results.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dkn_engine.attribution.paths import Ends, Paths, Points
from dkn_engine.forward.contexts import Contexts, by_position
from dkn_engine.forward.position_logits import position_logits
from dkn_engine.forward.routing import Routing, frozen
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.guest import hooks
from dkn_engine.ops.answer_probability.reference import token_objective
from dkn_engine.types import Path


class General:
    """Evaluates path points by full forwards of the whole sequence, one point a batch entry.

    At most ``rows_per_batch`` token positions are in one forward; the objective is the
    configuration's. With ``routing`` of the contexts, mixtures of experts keep to it at the
    positions that change.
    """

    name: Path = "general"

    def __init__(
        self,
        model: nn.Module,
        contexts: Contexts,
        paths: Paths,
        objective: str,
        rows_per_batch: int,
        routing: Routing | None = None,
    ) -> None:
        self.model, self.contexts, self.paths = model, contexts, paths
        self.objective, self.routing = objective, routing
        self.batch = max(1, rows_per_batch // contexts.n_read)

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]:
        """Gradient at the MLP's output ``[N, d]`` and objective ``[N]`` of every point."""
        gradients: list[Tensor] = []
        values: list[Tensor] = []
        order = torch.argsort(points.layer, stable=True)
        sizes = torch.bincount(points.layer, minlength=1).tolist()
        for of_layer in torch.split(order, sizes):

            def forward(start: int, stop: int, of_layer: Tensor = of_layer) -> None:
                gradient, value = self._forward(points.take(of_layer[start:stop]))
                gradients.append(gradient)
                values.append(value)

            self.batch = in_batches(len(of_layer), self.batch, forward)
        back = torch.argsort(order)
        return torch.cat(gradients)[back], torch.cat(values)[back]

    def _forward(self, points: Points) -> tuple[Tensor, Tensor]:
        layer = int(points.layer[0])
        leaf = self.paths.outputs(layer, points.context, points.alpha)
        leaf = leaf.detach().requires_grad_(True)
        sequence = self.contexts.sequence[points.context]
        position, changed = (x[points.context] for x in (self.contexts.position, self.contexts.at))
        entry = torch.arange(len(points), device=sequence.device)
        length = self.contexts.ids.shape[1]

        def patch(_module: Any, _args: Any, output: Tensor) -> Tensor:
            table = by_position(output, (len(points), length)).clone()
            table[entry.to(table.device), changed.to(table.device)] = leaf
            return table.view_as(output)

        layout, token = self.paths.layout, entry * length + changed
        handles = [layout.mlps[layer].down.register_forward_hook(patch)]
        with hooks(handles), frozen(layout, self.routing, token, points.context):
            logits = position_logits(self.model, self.contexts.inputs(sequence), entry, position)
        value = token_objective(logits, self.contexts.target[points.context], self.objective)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return gradient.to(value.device), value.detach()

    def begin(self, points: Points) -> tuple[Tensor, Tensor, Ends]:
        """:meth:`evaluate`, and the end points."""
        ends = self.ends()
        return *self.evaluate(points), ends

    def ends(self) -> Ends:
        """The clean activations of all layers, by one forward and backward pass a context."""
        n, layout = len(self.contexts), self.paths.layout
        device = self.contexts.ids.device
        like = torch.empty(n, layout.d_model, dtype=self.paths.dtype, device=device)
        ends = Ends.empty(like, layout.n_layers)

        def clean(start: int, stop: int) -> None:
            index = torch.arange(start, stop, device=device)
            ends.gradients[index], ends.values[index] = self._clean(index)

        self.batch = in_batches(n, self.batch, clean)
        return ends

    def _clean(self, index: Tensor) -> tuple[Tensor, Tensor]:
        contexts, layout = self.contexts, self.paths.layout
        entry = torch.arange(len(index), device=index.device)
        position, changed = contexts.position[index], contexts.at[index]
        length = contexts.ids.shape[1]
        shape = (layout.n_layers, len(index), layout.d_model)
        probe = torch.zeros(shape, dtype=self.paths.dtype, device=index.device, requires_grad=True)

        def add(layer: int, _module: Any, _args: Any, output: Tensor) -> Tensor:
            table = by_position(output, (len(index), length)).clone()
            there = (entry.to(table.device), changed.to(table.device))
            table[there] = table[there] + probe[layer].to(table.device)
            return table.view_as(output)

        downs = [mlp.down for mlp in layout.mlps]
        handles = [down.register_forward_hook(partial(add, i)) for i, down in enumerate(downs)]
        token = entry * length + changed
        with hooks(handles), frozen(layout, self.routing, token, index):
            inputs = contexts.inputs(contexts.sequence[index])
            logits = position_logits(self.model, inputs, entry, position)
        value = token_objective(logits, contexts.target[index], self.objective)
        (gradient,) = torch.autograd.grad(value.sum(), probe)
        return gradient.transpose(0, 1), value.detach()
