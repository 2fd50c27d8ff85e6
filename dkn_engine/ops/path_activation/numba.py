"""``path_activation`` on the CPU in one pass over each row, in at least float32."""

from __future__ import annotations

import torch
from torch import Tensor

from dkn_engine.ops._numba import loops
from dkn_engine.ops._numba.loops import array


def path_activation(
    alphas: Tensor, baseline: Tensor, value: Tensor, up: Tensor | None, kind: str
) -> Tensor:
    wide = torch.promote_types(value.dtype, torch.float32)
    out = torch.empty(value.shape, dtype=wide)
    factor = None if up is None else array(up, wide)
    given = [array(x, wide) for x in (alphas, baseline, value)]
    loops.run(loops.points, loops.KINDS.index(kind), *given, factor, out.numpy())
    return out.to(value.dtype)
