"""The sweep: all path points of all layers in one forward through the layers and one backward.

A path point of layer l enters the stack as one more row at layer l; by the last layer the rows of
all layers are one batch, whose gradients come from a single backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dkn_engine.attribution.paths import Ends, Paths, Points
from dkn_engine.attribution.residual_shortcut import ResidualStream, adds
from dkn_engine.forward.patched_rows import RowEngine, RowSet
from dkn_engine.forward.row_check import Check, failures_mean_no_sweep
from dkn_engine.forward.shrinking_batches import in_batches
from dkn_engine.models.devices import at
from dkn_engine.models.guest import hooks
from dkn_engine.ops.answer_probability import answer_probability
from dkn_engine.types import Path


class Sweep:
    """Evaluates path points as rows; see ``forward/patched_rows.py`` for why this is exact.

    At most ``rows_per_batch`` points climb at once; the objective is the configuration's.
    """

    name: Path = "sweep"

    def __init__(
        self, engine: RowEngine, paths: Paths, objective: str, rows_per_batch: int
    ) -> None:
        self.engine, self.paths = engine, paths
        self.objective, self.rows_per_batch = objective, rows_per_batch
        self.rest = ResidualStream.empty(engine.clean.hidden[0], engine.layout.n_layers)

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]:
        """Gradient at the MLP's output ``[N, d]`` and objective ``[N]`` of every point."""
        return self._evaluate(points, None)

    def begin(self, points: Points) -> tuple[Tensor, Tensor, Ends]:
        """:meth:`evaluate`, and the end points, for which a clean row a context climbs along.

        There is at least one point of every context.

        Raises:
            SweepUnsupported: clean rows do not reproduce the model's own forward.
        """
        ends = Ends.empty(self.engine.clean.hidden[0], self.engine.layout.n_layers)
        with failures_mean_no_sweep():
            return *self._evaluate(points, ends), ends

    def _evaluate(self, points: Points, ends: Ends | None) -> tuple[Tensor, Tensor]:
        clean = self.engine.clean.hidden[0]
        wide = torch.promote_types(clean.dtype, torch.float32)
        gradients = clean.new_empty(len(points), clean.shape[1])
        values = torch.empty(len(points), dtype=wide, device=clean.device)
        # Context-major batches that end where a context does, if one fits: contexts of equally many
        # points then need no padding.
        order = torch.argsort(points.context, stable=True)
        context = points.context[order]
        first = torch.ones_like(context, dtype=torch.bool)
        first[1:] = context[1:] != context[:-1]

        def climb(start: int, stop: int) -> None:
            index = order[start:stop]
            # A clean row climbs with the first of its context's points.
            own = context[:0] if ends is None else context[start:stop][first[start:stop]]
            found = self._climb(points.take(index), own, ends)
            gradients[index], values[index] = (x.to(clean.device) for x in found)

        # What did not fit once is not tried again for the next points.
        cuts = first.nonzero().squeeze(1).tolist()
        self.rows_per_batch = in_batches(len(points), self.rows_per_batch, climb, cuts)
        return gradients, values

    def _climb(self, points: Points, own: Tensor, ends: Ends | None) -> tuple[Tensor, Tensor]:
        with self.engine.active():
            climb = _Climb(self, points, own)
            climb.up()
            return climb.finish(ends)


class _Climb:
    """A batch of points on its way up, in front of them the clean rows of some contexts.

    Args:
        sweep: whose batch it is.
        points: of the batch.
        own: contexts, ascending, that have a clean row; its number among the rows follows those
            of the points.
    """

    def __init__(self, sweep: Sweep, points: Points, own: Tensor) -> None:
        self.engine, self.paths, self.objective = sweep.engine, sweep.paths, sweep.objective
        self.rest = sweep.rest
        self.points, self.own = points, own
        self.context = torch.cat([points.context, own])
        self.aligned = _aligned(points) and len(own) in {0, len(torch.unique(points.context))}
        self.hidden: Tensor | None = None
        self.origin: list[Tensor] = []  # the numbers of the rows of ``hidden``
        self.leaves: list[tuple[Tensor, Tensor]] = []  # (leaf [n, S, d], its points [n, S] or -1)
        self.outputs: list[Tensor] = []  # of every layer's MLP, where clean rows are among them
        self.check = Check(self.engine, own) if len(own) else None

    def up(self) -> None:
        """Through all layers, from the lowest that has a row."""
        first = int(self.points.layer.min())
        if len(self.own):
            first = 0
            table = torch.arange(len(self.points), len(self.context), device=self.own.device)
            clean = self.engine.clean_rows(self.own, 0).detach().requires_grad_(True)
            self._join(clean, table.unsqueeze(1))
        for layer in range(first, self.engine.layout.n_layers):
            if self.hidden is not None:
                self.hidden = self._through(layer, self.hidden)
            new = torch.nonzero(self.points.layer == layer).squeeze(1)
            if new.numel():
                table, context = _by_context(self.points, new)
                self._join(self._emerge(layer, table, context), table)

    def _join(self, rows: Tensor, table: Tensor) -> None:
        """Rows ``[n, S, d]``, a context each entry, take their places behind the others."""
        if not self.aligned:
            rows, table = at(rows, table >= 0).unsqueeze(0), table[table >= 0].unsqueeze(0)
        self.origin.append(table)
        self.hidden = rows if self.hidden is None else torch.cat([self.hidden, rows], dim=1)

    def _through(self, layer: int, hidden: Tensor) -> Tensor:
        context = self.context[torch.cat(self.origin, dim=1)]
        rows = RowSet(context[:, :1] if self.aligned else context, self.aligned)

        if self.check is None:
            return self.engine.run_layer(layer, hidden, rows)

        step: list[Any] = []

        def keep(_module: Any, _args: Any, output: Tensor) -> None:
            Check.mlp(output, hidden)
            self.outputs.append(output)
            step.append(output.grad_fn)

        down = self.engine.layout.mlps[layer].down
        with hooks([down.register_forward_hook(keep)]):
            out = self.engine.run_layer(layer, hidden, rows)
        clean, mlp = self._clean(out.detach()), self.outputs[-1]
        self.check.layer(layer, clean.unsqueeze(1))
        # An output that the layer has changed in place has another step by now.
        if adds(out, step[0]) and mlp.grad_fn is step[0]:
            self.rest.note(self.own, layer, clean, self._clean(mlp.detach()))
        return out

    def _clean(self, rows: Tensor) -> Tensor:
        """The clean ones ``[n, d]`` among all rows, which they are in front of."""
        return rows[:, 0] if self.aligned else rows[0, : len(self.own)]

    def _emerge(self, layer: int, table: Tensor, context: Tensor) -> Tensor:
        """What ``layer`` returns for path points, which are outputs of its MLP.

        Where it does not only add them, it runs on one clean row a context, and its MLP returns
        that context's points: the residual addition broadcasts one row over them, so attention and
        the MLP's first half are computed once.
        """
        flat = table.clamp(min=0).reshape(-1)
        outputs = self.paths.outputs(layer, self.context[flat], self.points.alpha[flat])
        leaf = outputs.view(*table.shape, -1).detach().requires_grad_(True)
        self.leaves.append((leaf, table))
        added = self.rest.plus(context, layer, leaf)
        if added is not None:
            return added

        def replace(_module: Any, _args: Any, _output: Tensor) -> Tensor:
            return leaf

        down = self.engine.layout.mlps[layer].down
        clean = self.engine.clean_rows(context, layer)
        rows = RowSet(context.unsqueeze(1), aligned=True)
        with hooks([down.register_forward_hook(replace)]):
            out = self.engine.run_layer(layer, clean, rows)
        Check.emerged(layer, out, leaf.shape)
        return out

    def finish(self, ends: Ends | None) -> tuple[Tensor, Tensor]:
        """Gradient ``[N, d]`` and objective ``[N]`` of the points; ``ends`` gets the clean rows.

        Each layer's gradients come from its device to that of the points.
        """
        assert self.hidden is not None
        flat = self.hidden.reshape(-1, self.hidden.shape[-1])
        index = torch.cat(self.origin, dim=1).reshape(-1)
        objective, top = answer_probability(
            self.engine.tail,
            flat,
            self.engine.contexts.target[self.context[index]],
            objective=self.objective,
            gradient=True,
            backend=self.paths.backend,
        )
        home = self.context.device
        values = torch.empty_like(objective, device=home)
        values[index] = objective.to(home)
        if self.check is not None:
            rows, own = self._clean(self.hidden.detach()), values[len(self.points) :]
            self.check.scored(self.engine.tail, rows, own, self.objective, self.paths.backend)
        leaves = [leaf for leaf, _ in self.leaves]
        found = torch.autograd.grad(flat, [*leaves, *self.outputs], grad_outputs=top)
        gradients = flat.new_empty(len(self.points), flat.shape[1], device=home)
        for gradient, (_, table) in zip(found, self.leaves, strict=False):
            gradients[table[table >= 0]] = at(gradient, table >= 0).to(home)
        if ends is not None:
            ends.values[self.own] = values[len(self.points) :]
            for layer, gradient in enumerate(found[len(leaves) :]):
                ends.gradients[self.own, layer] = self._clean(gradient).to(home)
        return gradients, values[: len(self.points)]


def _aligned(points: Points) -> bool:
    """Whether every context has the same number of points in every layer of the batch."""
    contexts, c = torch.unique(points.context, return_inverse=True)
    layers, layer = torch.unique(points.layer, return_inverse=True)
    counts = torch.bincount(c * len(layers) + layer, minlength=len(contexts) * len(layers))
    table = counts.view(len(contexts), len(layers))
    return bool((table == table[:1]).all())


def _by_context(points: Points, new: Tensor) -> tuple[Tensor, Tensor]:
    """The points ``new`` as a table ``[n, S]``, a row a context (-1: none), and the contexts."""
    context, row = torch.unique(points.context[new], return_inverse=True)
    order = torch.argsort(row, stable=True)
    counts = torch.bincount(row)
    start = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(new), device=new.device) - start[row[order]]
    table = new.new_full((len(context), int(counts.max())), -1)
    table[row[order], place] = new[order]
    return table, context
