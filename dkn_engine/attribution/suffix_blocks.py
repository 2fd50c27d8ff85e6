"""Blocks of a causal model, of which each is only what is behind the position that changes.

Contexts whose activations change at one position share what is in front of it, so that a block for
the position that predicts is a single one: as few as a row (``sweep.py``), in models whose
attention rows do not know. The plain form is a block of the whole sequence.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dkn_engine.attribution.block_sweep import Blocks
from dkn_engine.attribution.paths import Ends, Paths, Points
from dkn_engine.forward.cached_prefix import suffix_calls
from dkn_engine.forward.contexts import Contexts
from dkn_engine.forward.layer_calls import LayerCalls
from dkn_engine.forward.prefill import Prefill
from dkn_engine.forward.routing import Routing
from dkn_engine.forward.row_check import Check, failures_mean_no_sweep
from dkn_engine.models.devices import at
from dkn_engine.models.layout import Layout
from dkn_engine.types import Path

# A position of the prefix adds its key and value to what a block holds for the backward pass: 2 d
# numbers a layer beside the 12 d + 6 F of a position that climbs, with F = 4 d.
_PREFIX_SHARE = 1 / 18


class SuffixBlocks:
    """As :class:`dkn_engine.attribution.block_sweep.Blocks`, of causal models.

    Raises:
        SweepUnsupported: the layers behind a cached prefix are not given what they are given in the
            model's own pass; see also :func:`dkn_engine.forward.cached_prefix.suffix_calls`.
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
    ) -> None:
        self.layout, self.contexts, self.clean = layout, contexts, clean
        self.rest = (clean, paths, objective)
        starts, self.group = torch.unique(contexts.at, return_inverse=True)
        with failures_mean_no_sweep():
            self.parts = [
                self._part(start, self._members(g), rows_per_batch, routing)
                for g, start in enumerate(starts.tolist())
            ]

    def _members(self, group: int) -> Tensor:
        return torch.nonzero(self.group == group).squeeze(1)

    def _part(self, start: int, members: Tensor, rows: int, routing: Routing | None) -> Blocks:
        """The blocks of contexts ``[n]`` that change at one position."""
        contexts = self.contexts
        sequences, own = torch.unique(contexts.sequence[members], return_inverse=True)
        ids = contexts.ids[sequences, : int(contexts.position[members].max()) + 1]
        calls = suffix_calls(self.layout, self.clean, ids, start)
        self._require_same(calls, sequences, start)
        # The numbers of contexts stay, those that are not members' mean nothing.
        sequence = torch.zeros_like(contexts.sequence).index_copy(0, members, own)
        position, changed = contexts.position - start, contexts.at - start
        length = ids.shape[1] - start
        behind = replace(
            contexts, ids=ids[:, start:], sequence=sequence, position=position, changed=changed
        )
        fitting = int(rows * length / (length + _PREFIX_SHARE * start))
        return Blocks(self.layout, behind, *self.rest, max(1, fitting), routing, calls)

    def _require_same(self, calls: LayerCalls, sequences: Tensor, start: int) -> None:
        check = Check(self, sequences[:0])
        for layer, call in enumerate(self.clean.calls):
            found = calls.entering(layer)
            whole = at(next(iter(call.arguments.values())), sequences)
            check.note(found, whole[:, start : start + found.shape[1]])
        check.require(lambda layer: f"behind a cached prefix enter layer {layer}")

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]:
        """Gradient at the MLP's output ``[N, d]`` and objective ``[N]`` of every point."""
        group = self.group[points.context]
        order: list[Tensor] = []
        found: list[tuple[Tensor, Tensor]] = []
        for g, blocks in enumerate(self.parts):
            mine = torch.nonzero(group == g).squeeze(1)
            if mine.numel():
                order.append(mine)
                found.append(blocks.evaluate(points.take(mine)))
        back = torch.argsort(torch.cat(order))
        gradients, values = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
        return gradients, values

    def begin(self, points: Points) -> tuple[Tensor, Tensor, Ends]:
        """:meth:`evaluate`, and the end points, from unchanged blocks.

        Raises:
            SweepUnsupported: these do not reproduce the model's own forward.
        """
        ends = Ends.empty(self.clean.hidden[0], self.layout.n_layers)
        with failures_mean_no_sweep():
            for g, blocks in enumerate(self.parts):
                blocks.fill(ends, self._members(g))
            return *self.evaluate(points), ends
