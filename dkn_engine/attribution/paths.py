"""The integration path of each context and layer, in activation and in model space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dkn_engine.layout import Layout
from dkn_engine.ops.ig_accumulate import ig_accumulate
from dkn_engine.ops.path_activation import path_activation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Points:
    """Path points to evaluate, sorted by the caller as it likes.

    Attributes:
        context, layer: int64 ``[N]``.
        alpha: float64 ``[N]`` in [0, 1]; 1 is the clean activation.
    """

    context: Tensor
    layer: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return int(self.alpha.shape[0])

    def take(self, index: Tensor) -> Points:
        return Points(self.context[index], self.layer[index], self.alpha[index])


class Paths:
    """Straight paths from baseline to activation at one site, for every context and layer.

    Args:
        layout: the decoder.
        site: ``post`` or ``pre``.
        value, baseline: ``[C, L, F]``, x and x' at the site.
        up: ``[C, L, F]``, the linear factor (``pre`` only), or None.
        multiply_by: ``delta`` or ``activation``.
        backend: see ``AttributionConfig``.
    """

    def __init__(
        self,
        layout: Layout,
        site: str,
        value: Tensor,
        baseline: Tensor,
        up: Tensor | None,
        multiply_by: str,
        backend: str,
    ) -> None:
        self.layout, self.site, self.backend = layout, site, backend
        self.value, self.baseline, self.up = value, baseline.to(value.dtype), up
        self.factor = value if multiply_by == "activation" else value - self.baseline
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}
        self._w_out: dict[int, Tensor] = {}

    def outputs(self, layer: int, context: Tensor, alpha: Tensor) -> Tensor:
        """The MLP's output ``[n, d]`` at path points of one layer."""
        down = self.layout.mlps[layer].down
        alpha = alpha.to(self.value.dtype)
        if self.site == "post":
            # The projection is linear, so the path is straight after it too: project two ends.
            if layer not in self._ends:
                ends = torch.stack([self.baseline[:, layer], self.value[:, layer]])
                projected = down(ends)
                self._ends[layer] = (projected[0], projected[1])
            start, end = self._ends[layer]
            return start[context] + alpha.unsqueeze(-1) * (end - start)[context]
        up = None if self.up is None else self.up[context, layer]
        act = self.layout.mlps[layer].act
        assert act is not None
        ends_of = (self.baseline[context, layer], self.value[context, layer])
        inner = path_activation(alpha, *ends_of, up, act, backend=self.backend)
        out: Tensor = down(inner)
        return out

    def scores(
        self,
        layer: int,
        gradients: Tensor,
        alpha: Tensor,
        weights: Tensor,
        segments: Tensor,
        context: Tensor,
    ) -> Tensor:
        """Integrated gradients ``[K, M, F]`` of K rules over M segments of one layer's points.

        Args:
            layer: the layer of all points.
            gradients, alpha, segments: ``[N, d]``, ``[N]``, int64 ``[N]``, one entry a point.
            weights: ``[K, N]``.
            context: int64 ``[M]``, of each segment.
        """
        mlp = self.layout.mlps[layer]
        if layer not in self._w_out:
            self._w_out[layer] = mlp.w_out(slice(None))
        path = None
        if self.site == "pre":
            assert mlp.act is not None
            baseline = self.baseline[context, layer]
            delta = self.value[context, layer] - baseline
            up = None if self.up is None else self.up[context, layer]
            path = (alpha, baseline, delta, up, mlp.act)
        return ig_accumulate(
            gradients,
            weights,
            segments,
            self._w_out[layer],
            self.factor[context, layer],
            path=path,
            backend=self.backend,
        )
