"""One climb through the layers for all path points, one backward for all their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dkn_engine.attribution.check import Trial
from dkn_engine.attribution.paths import Paths, Points
from dkn_engine.attribution.rows import RowEngine, RowSet
from dkn_engine.batches import in_batches
from dkn_engine.guest import hooks
from dkn_engine.ops.answer_probability import answer_probability

if TYPE_CHECKING:
    from torch import Tensor


class Sweep:
    """Evaluates path points as rows; see ``rows.py`` for why this is exact.

    Args:
        engine: the rows of one chunk.
        paths: where the points lie.
        objective: ``probability`` or ``log_probability``.
        rows_per_batch: most points climbing at once.
        trial: of the engine; only :meth:`clean` needs it.
    """

    name = "sweep"

    def __init__(
        self,
        engine: RowEngine,
        paths: Paths,
        objective: str,
        rows_per_batch: int,
        trial: Trial | None = None,
    ) -> None:
        self.engine, self.paths, self.trial = engine, paths, trial
        self.objective, self.rows_per_batch = objective, rows_per_batch

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]:
        """Gradient at the MLP's output ``[N, d]`` and objective ``[N]`` of every point."""
        clean = self.engine.clean.hidden[0]
        wide = torch.promote_types(clean.dtype, torch.float32)
        gradients = clean.new_empty(len(points), clean.shape[1])
        values = torch.empty(len(points), dtype=wide, device=clean.device)
        # Context-major batches: a batch then holds whole contexts with all their layers.
        order = torch.argsort(points.context, stable=True)

        def climb(start: int, stop: int) -> None:
            index = order[start:stop]
            with self.engine.active():
                gradients[index], values[index] = self._climb(points.take(index))

        # What did not fit once is not tried again for the next points.
        self.rows_per_batch = in_batches(len(points), self.rows_per_batch, climb)
        return gradients, values

    def _climb(self, points: Points) -> tuple[Tensor, Tensor]:
        engine = self.engine
        n_layers, aligned = engine.layout.n_layers, _aligned(points)
        first = int(points.layer.min())
        hidden: Tensor | None = None
        origin: list[Tensor] = []  # for each row of ``hidden``, its point
        leaves: list[tuple[Tensor, Tensor]] = []  # (leaf [n, S, d], its points [n, S] or -1)
        for layer in range(first, n_layers):
            if hidden is not None:
                rows = self._row_set(points, torch.cat(origin, dim=1), aligned)
                hidden = engine.run_layer(layer, hidden, rows)
            new = torch.nonzero(points.layer == layer).squeeze(1)
            if new.numel():
                table, context = _by_context(points, new)
                leaf, out = self._emerge(layer, points, table, context)
                leaves.append((leaf, table))
                if not aligned:
                    out, table = out[table >= 0].unsqueeze(0), table[table >= 0].unsqueeze(0)
                origin.append(table)
                hidden = out if hidden is None else torch.cat([hidden, out], dim=1)
        assert hidden is not None
        return self._finish(points, hidden, torch.cat(origin, dim=1), leaves)

    def _row_set(self, points: Points, origin: Tensor, aligned: bool) -> RowSet:
        context = points.context[origin]
        return RowSet(context[:, :1] if aligned else context, aligned)

    def _emerge(
        self, layer: int, points: Points, table: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run ``layer`` on one clean row a context; its MLP returns that context's path points.

        The residual addition broadcasts one row over the points, so attention and the MLP's
        first half are computed once.
        """
        flat = table.clamp(min=0).reshape(-1)
        outputs = self.paths.outputs(layer, points.context[flat], points.alpha[flat])
        leaf = outputs.view(*table.shape, -1).detach().requires_grad_(True)

        def replace(_module: Any, _args: Any, _output: Tensor) -> Tensor:
            return leaf

        down = self.engine.layout.mlps[layer].down
        clean = self.engine.clean_rows(context, layer)
        rows = RowSet(context.unsqueeze(1), aligned=True)
        with hooks([down.register_forward_hook(replace)]):
            return leaf, self.engine.run_layer(layer, clean, rows)

    def _finish(
        self,
        points: Points,
        hidden: Tensor,
        origin: Tensor,
        leaves: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        flat, index = hidden.reshape(-1, hidden.shape[-1]), origin.reshape(-1)
        targets = self.engine.contexts.target[points.context[index]]
        objective, top = answer_probability(
            self.engine.tail,
            flat,
            targets,
            objective=self.objective,
            gradient=True,
            backend=self.paths.backend,
        )
        found = torch.autograd.grad(flat, [leaf for leaf, _ in leaves], grad_outputs=top)
        gradients = flat.new_empty(len(points), flat.shape[1])
        for gradient, (_, table) in zip(found, leaves, strict=True):
            gradients[table[table >= 0]] = gradient[table >= 0]
        values = torch.empty_like(objective)
        values[index] = objective
        return gradients, values

    def clean(self) -> tuple[Tensor, Tensor]:
        """The end point alpha = 1 of every layer from one row a context; once.

        Returns:
            Gradients ``[C, L, d]`` at every MLP's output, and the objective ``[C]``.
        """
        assert self.trial is not None
        trial, self.trial = self.trial, None
        with self.engine.active():
            objective, top = answer_probability(
                self.engine.tail,
                trial.hidden,
                self.engine.contexts.target,
                objective=self.objective,
                gradient=True,
                backend=self.paths.backend,
            )
        found = torch.autograd.grad(trial.hidden, trial.probes, grad_outputs=top)
        return torch.cat(found, dim=1), objective


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
