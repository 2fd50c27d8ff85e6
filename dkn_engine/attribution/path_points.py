"""The points of paths at which a model was asked, and the panels that they make integrals of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dkn_engine.attribution.paths import Ends, Paths, Points
from dkn_engine.attribution.quadrature_rules import FINER, LEVELS, NODES, Array

if TYPE_CHECKING:
    from torch import Tensor


class Evaluator(Protocol):
    """The sweep or the general path."""

    def begin(self, points: Points) -> tuple[Tensor, Tensor, Ends]: ...

    def evaluate(self, points: Points) -> tuple[Tensor, Tensor]: ...


@dataclass(eq=False)
class Panel:
    """A piece [a, b] of one context's path in one layer, with the nodes of its finest rule."""

    context: int
    layer: int
    a: float
    b: float
    nodes: Array
    score: NDArray[np.floating] | None = None
    error: float = float("inf")

    @property
    def n_nodes(self) -> int:
        return len(self.nodes)

    @property
    def smooth(self) -> bool:
        """Whether nothing has yet shown that the integrand is not."""
        return self.n_nodes < 9 and self.b - self.a == 1.0

    @property
    def key(self) -> tuple[int, int]:
        return (self.context, self.layer)


def panel_of(context: int, layer: int, a: float, b: float, n: int) -> Panel:
    """The panel with the nodes of the nested rule of n points."""
    return Panel(context, layer, a, b, a + (b - a) * NODES[list(LEVELS[n])])


Key = tuple[int, int, float]


class PathPoints:
    """Every point evaluated so far: gradient and objective by (context, layer, alpha).

    Args:
        evaluator: the sweep or the general path.
        paths: where the points lie.
        keys: the first points, some of every context; alpha = 1 comes with them for nothing.
    """

    def __init__(self, evaluator: Evaluator, paths: Paths, keys: list[Key]) -> None:
        self.evaluator, self.paths = evaluator, paths
        self.n, self.n_layers = paths.value.shape[:2]
        self.device = paths.value.device
        self.gradients: list[Tensor] = []
        self.values: dict[Key, float] = {}
        self.index: dict[Key, tuple[int, int]] = {}
        fresh = self._fresh(keys)
        gradients, values, self.ends = evaluator.begin(self._points(fresh))
        self._keep(fresh, gradients, values)
        self.dtype = np.float64 if self.ends.values.dtype == torch.float64 else np.float32
        self.end_values = self.ends.values.double().cpu().numpy()

    def pay(self, keys: list[Key]) -> None:
        """Evaluate the points not seen before."""
        fresh = self._fresh(keys)
        if fresh:
            self._keep(fresh, *self.evaluator.evaluate(self._points(fresh)))

    def _fresh(self, keys: list[Key]) -> list[Key]:
        return [k for k in dict.fromkeys(keys) if k[2] < 1.0 and k not in self.index]

    def _points(self, keys: list[Key]) -> Points:
        context, layer, alpha = zip(*keys, strict=True)
        return Points(
            torch.tensor(context, device=self.device),
            torch.tensor(layer, device=self.device),
            torch.tensor(alpha, dtype=torch.float64, device=self.device),
        )

    def _keep(self, fresh: list[Key], gradients: Tensor, values: Tensor) -> None:
        batch = len(self.gradients)
        self.gradients.append(gradients)
        for i, (key, value) in enumerate(zip(fresh, values.double().tolist(), strict=True)):
            self.index[key] = (batch, i)
            self.values[key] = value

    def value(self, context: int, layer: int, alpha: float) -> float:
        """The objective at a point."""
        if alpha >= 1.0:
            return float(self.end_values[context])
        return self.values[context, layer, alpha]

    def n_paid(self) -> NDArray[np.int64]:
        """Points evaluated, ``[C, L]``; those of alpha = 1 cost nothing."""
        counts = np.zeros((self.n, self.n_layers), dtype=np.int64)
        for context, layer, _ in self.index:
            counts[context, layer] += 1
        return counts

    def _rows(self, keys: list[Key]) -> Tensor:
        """Gradients ``[N, d]`` of known points, in the order of ``keys``."""
        out = self.ends.gradients.new_empty(len(keys), self.ends.gradients.shape[-1])
        places: dict[int, tuple[list[int], list[int]]] = {}
        for row, (context, layer, alpha) in enumerate(keys):
            if alpha >= 1.0:
                batch, source = -1, context * self.n_layers + layer
            else:
                batch, source = self.index[context, layer, alpha]
            rows, sources = places.setdefault(batch, ([], []))
            rows.append(row)
            sources.append(source)
        flat = self.ends.gradients.reshape(-1, self.ends.gradients.shape[-1])
        for batch, (rows, sources) in places.items():
            table = flat if batch < 0 else self.gradients[batch]
            out[torch.tensor(rows, device=out.device)] = table[
                torch.tensor(sources, device=out.device)
            ]
        return out

    def integrate(self, panels: list[Panel], weights: Array) -> NDArray[np.floating]:
        """``[K, M, F]``: K rules over M panels of one layer, which share the nodes' pattern.

        Args:
            panels: M panels of equal layer and number of nodes.
            weights: ``[K, k]`` on [0, 1], for the k nodes of a panel.
        """
        k = panels[0].n_nodes
        keys = [(p.context, p.layer, float(a)) for p in panels for a in p.nodes]
        length = np.repeat([p.b - p.a for p in panels], k)
        w = np.tile(weights, (1, len(panels))) * length
        alpha = np.concatenate([p.nodes for p in panels])
        out = self.paths.scores(
            panels[0].layer,
            self._rows(keys),
            torch.from_numpy(alpha).to(self.device),
            torch.from_numpy(w).to(self.device, self.ends.values.dtype),
            torch.arange(len(panels), device=self.device).repeat_interleave(k),
            torch.tensor([p.context for p in panels], device=self.device),
        )
        found: NDArray[np.floating] = out.cpu().numpy().astype(self.dtype, copy=False)
        return found


def keys_of(panels: list[Panel]) -> list[Key]:
    """All nodes of some panels."""
    return [(p.context, p.layer, float(a)) for p in panels for a in p.nodes]


def refined(panel: Panel) -> list[Panel]:
    """The panel by the next finer rule; by the finest already, as two halves."""
    if panel.n_nodes in FINER:
        finer = FINER[panel.n_nodes]
        return [panel_of(panel.context, panel.layer, panel.a, panel.b, finer)]
    # The halves reuse the parent's end points and its middle node, bit for bit.
    middle = float(panel.nodes[4])
    halves = []
    for a, b in ((panel.a, middle), (middle, panel.b)):
        half = panel_of(panel.context, panel.layer, a, b, 5)
        half.nodes[0], half.nodes[-1] = a, b
        halves.append(half)
    return halves
