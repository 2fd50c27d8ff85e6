"""The sweep in blocks: a path point is a whole sequence, which climbs the layers with the others.

A point of layer l enters the stack at layer l, as the model's own states of its sequence with the
MLP's output changed at one position; by the last layer the points of all layers are one batch,
whose gradients come from a single backward pass. Against rows (``sweep.py``) a block costs as many
positions as the sequence has, and asks nothing of the attention: any position may see any other.
Against full forward passes it leaves out the layers below the point, and the head but for the
positions that are scored.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dkn_engine.attribution.paths import Ends, Paths, Points
from dkn_engine.forward.contexts import Contexts, by_position
from dkn_engine.forward.head import model_tail
from dkn_engine.forward.layer_calls import LayerCalls, whole_calls
from dkn_engine.forward.patched_rows import SweepUnsupported
from dkn_engine.forward.prefill import Prefill
from dkn_engine.forward.routing import Routing, frozen
from dkn_engine.forward.row_check import Check, failures_mean_no_sweep
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.forward.some_rows import can_run_in_part, run_in_part
from dkn_engine.models.devices import at
from dkn_engine.models.guest import hooks
from dkn_engine.models.layout import Layout
from dkn_engine.ops.answer_probability import answer_probability
from dkn_engine.types import Path


class Blocks:
    """Evaluates path points as blocks of all positions of their sequences.

    At most ``rows_per_batch`` token positions climb at once; the objective is the configuration's.
    With ``routing`` of the contexts, mixtures of experts keep to it at the positions that change.
    ``calls`` are of the contexts' sequences; None for those of the model's own pass, ``clean``.

    Raises:
        SweepUnsupported: see :class:`dkn_engine.forward.layer_calls.LayerCalls`.
    """

    name: Path = "blocks"

    def __init__(
        self,
        layout: Layout,
        contexts: Contexts,
        clean: Prefill,
        paths: Paths,
        objective: str,
        rows_per_batch: int,
        routing: Routing | None = None,
        calls: LayerCalls | None = None,
    ) -> None:
        self.layout, self.contexts, self.clean = layout, contexts, clean
        self.routing = routing
        self.paths, self.objective = paths, objective
        self.batch = max(1, rows_per_batch // contexts.n_read)
        whole = (layout.model, layout, clean.hidden[-1])
        self.in_part = can_run_in_part(layout, contexts.ids.shape[1])
        self._known: dict[int, Tensor] = {}  # by layer, see _in_part
        self.tail = model_tail(*whole, in_tuples=clean.in_tuples)
        with failures_mean_no_sweep():
            self.calls = whole_calls(layout, contexts, clean) if calls is None else calls

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]:
        """Gradient at the MLP's output ``[N, d]`` and objective ``[N]`` of every point."""
        gradients: list[Tensor] = []
        values: list[Tensor] = []
        # Batches of neighbouring layers, so that none begins far below most of its points.
        order = torch.argsort(points.layer, stable=True)

        def climb(start: int, stop: int) -> None:
            gradient, value = self._climb(points.take(order[start:stop]))
            gradients.append(gradient)
            values.append(value)

        self.batch = in_batches(len(points), self.batch, climb)
        back = torch.argsort(order)
        return torch.cat(gradients)[back], torch.cat(values)[back]

    def begin(self, points: Points) -> tuple[Tensor, Tensor, Ends]:
        """:meth:`evaluate`, and the end points, from unchanged blocks.

        Raises:
            SweepUnsupported: these do not reproduce the model's own forward.
        """
        ends = Ends.empty(self.clean.hidden[0], self.layout.n_layers)
        with failures_mean_no_sweep():
            self.fill(ends, torch.arange(len(self.contexts), device=self.contexts.ids.device))
            return *self.evaluate(points), ends

    def fill(self, ends: Ends, context: Tensor) -> None:
        """Put the end points of some contexts ``[n]`` in their places.

        Raises:
            SweepUnsupported: unchanged blocks do not reproduce the model's own forward.
        """
        if self.in_part:
            try:
                with failures_mean_no_sweep():
                    return self._fill(ends, context)
            except SweepUnsupported:  # An MLP does not run at single positions.
                self.in_part = False
        return self._fill(ends, context)

    def _fill(self, ends: Ends, context: Tensor) -> None:
        def clean(start: int, stop: int) -> None:
            index = context[start:stop]
            ends.gradients[index], ends.values[index] = self._unchanged(index)

        self.batch = in_batches(len(context), self.batch, clean)

    def _climb(self, points: Points) -> tuple[Tensor, Tensor]:
        """Points in ascending order of their layers: those of a layer join at it, on its device."""
        sequence = self.contexts.sequence[points.context]
        position = self.contexts.at[points.context]
        here = torch.bincount(points.layer, minlength=self.layout.n_layers).tolist()
        hidden = self.calls.entering(0)[:0]
        leaves: list[Tensor] = []
        for layer, new in enumerate(here):
            before = hidden.shape[0]
            n = before + new
            if not n:
                continue
            handles = self._in_part(layer, points.context[:n], before)
            if new:
                own = slice(before, n)
                hidden = torch.cat([hidden, at(self.calls.entering(layer), sequence[own])])
                leaf = self.paths.outputs(layer, points.context[own], points.alpha[own])
                leaves.append(leaf.detach().requires_grad_(True))
                entry = torch.arange(before, n, device=sequence.device)
                put = partial(_put, hidden.shape, entry, position[own], leaves[-1])
                handles.append(self.layout.mlps[layer].down.register_forward_hook(put))
            with hooks(handles), self._routed(points.context[:n]):
                hidden = self.calls.run(layer, hidden, sequence[:n])
        rows, values, top = self._scored(hidden, points.context)
        gradients = torch.autograd.grad(rows, leaves, grad_outputs=top)
        return torch.cat([g.to(sequence.device) for g in gradients]), values

    def _unchanged(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients ``[n, L, d]`` at all MLPs' outputs and objective ``[n]``, of clean blocks."""
        sequence, position = self.contexts.sequence[context], self.contexts.at[context]
        hidden = at(self.calls.entering(0), sequence).detach().requires_grad_(True)
        outputs: list[Tensor] = []
        check = Check(self, context)

        def keep(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            outputs.append(output)
            return output.clone()  # which the layer may go on to change in place

        for layer, mlp in enumerate(self.layout.mlps):
            handles = self._in_part(layer, context, len(context))
            handles.append(mlp.down.register_forward_hook(keep))
            with hooks(handles), self._routed(context):
                hidden = self.calls.run(layer, hidden, sequence)
            self._know(layer, outputs[-1].detach(), context)
            if layer + 1 < self.layout.n_layers:
                check.note(hidden.detach(), at(self.calls.entering(layer + 1), sequence))
        rows, values, top = self._scored(hidden, context)
        check.scored(self.tail, rows.detach(), values, self.objective, self.paths.backend)
        found = torch.autograd.grad(rows, outputs, grad_outputs=top)
        entry = torch.arange(len(context), device=context.device)
        own = [at(by_position(g, hidden.shape[:2]), entry, position) for g in found]
        return torch.stack([g.to(context.device) for g in own], dim=1), values

    def _in_part(self, layer: int, context: Tensor, n: int) -> list[RemovableHandle]:
        """Hooks by which a layer's MLP runs for the first ``n`` of its blocks alone.

        The others are unchanged as far as there. Of the last layer only scored rows are read.
        """
        last = layer + 1 == self.layout.n_layers
        if not self.in_part or not (last or n < len(context)):
            return []
        length, device = self.contexts.ids.shape[1], context.device
        rows = torch.arange(max(n, 1) * length, device=device)  # no module runs for nothing
        if last:
            rows = rows[::length] + self.contexts.position[context[: max(n, 1)]]
        mlp = self.layout.mlps[layer]
        blank = self.clean.hidden[layer].new_zeros(n, length, self.layout.d_model)
        if n < len(context):
            known = at(self._known[layer], context[n:])
            blank = torch.cat([blank.to(known.device), known])
        return run_in_part(mlp, rows, blank)

    def _know(self, layer: int, output: Tensor, context: Tensor) -> None:
        """Keep what a layer's MLP gives for unchanged blocks ``[n]``."""
        if self.in_part:
            output = by_position(output, (len(context), self.contexts.ids.shape[1]))
            shape = (len(self.contexts), *output.shape[1:])
            known = self._known.setdefault(layer, output.new_empty(shape))
            known[context.to(known.device)] = output

    def _routed(self, context: Tensor) -> contextlib.AbstractContextManager[None]:
        """Blocks ``[n]`` in the block of code go where their contexts went."""
        length = self.contexts.ids.shape[1]
        entry = torch.arange(len(context), device=context.device)
        token = entry * length + self.contexts.at[context]
        return frozen(self.layout, self.routing, token, context)

    def _scored(self, hidden: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of blocks ``[n, T, d]`` out of the last layer: the rows ``[n, d]`` that are scored, their
        objective ``[n]`` and its gradients ``[n, d]`` there.
        """
        entry = torch.arange(len(context), device=context.device)
        rows = at(hidden, entry, self.contexts.position[context])
        values, top = answer_probability(
            self.tail,
            rows,
            self.contexts.target[context],
            objective=self.objective,
            gradient=True,
            backend=self.paths.backend,
        )
        assert top is not None
        return rows, values.to(context.device), top


def _put(
    shape: torch.Size,
    entry: Tensor,
    position: Tensor,
    leaf: Tensor,
    _module: nn.Module,
    _args: Any,
    output: Tensor,
) -> Tensor:
    """Outputs of an MLP over blocks ``[n, T, d]``, exchanged for ``leaf`` at (entry, position)."""
    table = by_position(output, shape[:2]).clone()
    table[entry.to(table.device), position.to(table.device)] = leaf
    return table.view_as(output)
