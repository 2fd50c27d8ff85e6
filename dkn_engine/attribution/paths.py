"""The integration path of each context and layer, in activation and in model space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from dkn_engine.attribution.sites import STRAIGHT
from dkn_engine.models.affine import bias_of
from dkn_engine.models.dense import is_dense
from dkn_engine.models.devices import at, is_offloaded
from dkn_engine.models.layout import Layout
from dkn_engine.models.projections import project
from dkn_engine.ops.ig_accumulate import ig_accumulate
from dkn_engine.ops.path_activation import path_activation


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


@dataclass(frozen=True, eq=False)
class Ends:
    """The end point alpha = 1 of every path: the clean activation, in all layers at once.

    Attributes:
        gradients: ``[C, L, d]`` at every MLP's output.
        values: ``[C]``, the objective, in at least float32.
    """

    gradients: Tensor
    values: Tensor

    @classmethod
    def empty(cls, like: Tensor, n_layers: int) -> Ends:
        """Of the contexts, width, dtype and device of ``like`` ``[C, d]``, not filled in."""
        wide = torch.promote_types(like.dtype, torch.float32)
        n, d = like.shape
        return cls(like.new_empty(n, n_layers, d), like.new_empty(n, dtype=wide))


class Paths:
    """Straight paths from baseline to activation at one site, for every context and layer.

    Args:
        layout: the decoder.
        site: see ``AttributionConfig``.
        value, baseline: ``[C, L, F]``, x and x' at the site.
        fixed: ``[C, L, F]``, what multiplies the activation (``pre``: after the non-linearity) and
            stays as it is, or None; see :func:`dkn_engine.attribution.sites.site_activation`.
        multiply_by, backend: see ``AttributionConfig``.
        first: int64 ``[C]``, the context of each one's first answer token, whose x multiplies with
            ``first_activation``.
    """

    def __init__(
        self,
        layout: Layout,
        site: str,
        value: Tensor,
        baseline: Tensor,
        fixed: Tensor | None,
        multiply_by: str,
        backend: str,
        first: Tensor | None = None,
    ) -> None:
        self.layout, self.site, self.backend = layout, site, backend
        # Not in a half precision: x' may be close to x, and their difference is what is asked for.
        self.dtype, wide = value.dtype, torch.promote_types(value.dtype, torch.float32)
        self.value, self.baseline, self.fixed = value.to(wide), baseline.to(wide), fixed
        if multiply_by == "first_activation":
            assert first is not None
            self.factor = self.value[first]
        elif multiply_by == "activation":
            self.factor = self.value
        else:
            self.factor = self.value - self.baseline
        if site in {"up", "gate_act"}:
            assert fixed is not None
            # What reaches the projection, whose rows then serve the scores as they do for post.
            self.value, self.baseline = self.value * fixed, self.baseline * fixed
            self.factor = self.factor * fixed
        self._ends: dict[int, tuple[Tensor, Tensor]] = {}
        self._w_out: dict[int, Tensor] = {}
        self._magnification: NDArray[np.float64] | None = None

    def magnification(self) -> NDArray[np.float64]:
        """How much longer the ends of each path are than what its gradients are multiplied by.

        Float64 ``[C, L, F]`` on the host, 0 where that is 0: max(|x|, |x'|) / |x - x'|.
        """
        if self._magnification is None:
            # In float64, where no quotient of two such numbers overflows.
            size = torch.maximum(self.value.abs(), self.baseline.abs()).double()
            ratio = torch.where(self.factor == 0, 0, size / self.factor.abs())
            self._magnification = ratio.cpu().numpy()
        return self._magnification

    def outputs(self, layer: int, context: Tensor, alpha: Tensor) -> Tensor:
        """The MLP's output ``[n, d]`` at path points of one layer, on the layer's device."""
        if self.site in STRAIGHT:
            # The projection is linear, so the path is straight after it too: project two ends.
            if layer not in self._ends:
                ends = torch.stack([self.baseline[:, layer], self.value[:, layer]])
                start, end = self._project(layer, ends)
                self._ends[layer] = (start, end - start)
            start, change = self._ends[layer]
            along = alpha.to(start).unsqueeze(-1)
            return (at(start, context) + along * at(change, context)).to(self.dtype)
        up = None if self.fixed is None else self.fixed[context, layer]
        act = self.layout.mlps[layer].act
        assert act is not None
        ends_of = (self.baseline[context, layer], self.value[context, layer])
        inner = path_activation(alpha, *ends_of, up, act, backend=self.backend)
        return self._project(layer, inner.to(self.dtype))

    def _project(self, layer: int, x: Tensor) -> Tensor:
        """``x`` ``[..., F]`` through the down projection, in the dtype of ``x``."""
        down, x = self.layout.mlps[layer].down, x[..., : self.layout.widths[layer]]
        if is_dense(down):
            return project(down, x)
        # By the rows that scores are read with, which may be wider than what it takes itself.
        bias = bias_of(down)
        assert bias is not None
        rows = self._rows(layer).to(x.dtype)
        return x.to(rows.device) @ rows + bias.to(x.dtype)

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

        On the layer's device; exactly 0 where a narrower layer has no neuron.
        """
        act, w_out = self.layout.mlps[layer].act, self._rows(layer)
        width = self.layout.widths[layer]

        def there(x: Tensor) -> Tensor:
            return x.to(w_out.device)

        def own(table: Tensor) -> Tensor:
            return there(table[context, layer, :width])

        path = None
        if self.site == "pre":
            assert act is not None
            baseline = own(self.baseline)
            delta = own(self.value) - baseline
            up = None if self.fixed is None else own(self.fixed)
            path = (there(alpha), baseline, delta, up, act)
        found = ig_accumulate(
            there(gradients),
            there(weights),
            there(segments),
            w_out,
            own(self.factor),
            path=path,
            backend=self.backend,
        )
        # pad copies even where there is nothing to add.
        missing = self.layout.width - width
        return pad(found, (0, missing)) if missing else found

    def _rows(self, layer: int) -> Tensor:
        """The down projection's rows ``[F, d]``, kept; of one layer at a time if offloaded."""
        if layer not in self._w_out:
            mlp = self.layout.mlps[layer]
            if is_offloaded(mlp.down):
                self._w_out.clear()
            self._w_out[layer] = mlp.w_out(slice(None))
        return self._w_out[layer]
