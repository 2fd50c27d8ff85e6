"""``ig_accumulate`` on the CPU: products by BLAS, everything between them in compiled loops.

The sum is that of integrated gradients (Sundararajan et al., arXiv 1703.01365, equation 1). For
``pre`` the gradients are projected a block of points at a time, and a block that is summed is
overwritten by the next, so nothing of size ``[N, F]`` is kept. Numbers are at least float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dkn_engine.ops._numba import loops
from dkn_engine.ops._numba.loops import array

Path = tuple[Tensor, Tensor, Tensor, Tensor | None, str]

# Numbers of a block, 2 MB in float32: BLAS rearranges w_out for every block, so few wide ones.
BLOCK = 1 << 19


def ig_accumulate(
    gradients: Tensor,
    weights: Tensor,
    segments: Tensor,
    w_out: Tensor,
    factor: Tensor,
    path: Path | None,
    block: int = BLOCK,
) -> Tensor:
    """See ``api.py``; the path holds the non-linearity's name.

    Raises:
        IndexError: a segment is not in [0, M).
    """
    wide = torch.promote_types(gradients.dtype, torch.float32)
    g, w_out, factor = (x.detach().to(wide) for x in (gradients, w_out, factor))
    n_segments, where = factor.shape[0], array(segments, torch.int64)
    if where.size and not 0 <= where.min() <= where.max() < n_segments:
        found = f"{where.min()} to {where.max()}"
        raise IndexError(f"segments must be in [0, {n_segments}); got {found}")
    by_point = array(weights.T, wide)  # [N, K]
    if path is None:
        summed = g.new_zeros(weights.shape[0], n_segments, g.shape[1])
        loops.run(loops.step_sum, by_point, where, array(g, wide), summed.numpy())
        return (summed @ w_out.T).mul_(factor)
    kind, along = loops.KINDS.index(path[4]), array(path[0], wide)
    start, change, up = (None if x is None else array(x, wide) for x in path[1:4])
    scores = g.new_zeros(weights.shape[0], *factor.shape)
    size = max(16, block // max(1, w_out.shape[0]))
    for first in range(0, len(g), size):
        points = slice(first, first + size)
        rows = torch.mm(g[points], w_out.T)
        given = (kind, along[points], by_point[points], where[points], start, change, up)
        loops.run(loops.slope_sum, *given, rows.numpy(), scores.numpy())
    return scores.mul_(factor)
