"""``answer_probability``: projection, log-sum-exp and gradient in one pass over the vocabulary.

With x a row's normed hidden state, z_v = scale (x . W_v + b_v), s_v = cap(z_v) and
g_v = d s_v / d z_v = 1 - (s_v / cap)^2, or 1 without a cap:

    log p = s_t - log sum_v exp(s_v),      p = exp(log p)
    d log p / dx = scale ((1 - p) g_t W_t - sum_{v != t} p_v g_v W_v),      dp / dx = p d log p / dx

The target stands apart since p is close to 1 for a fact the model knows, where the difference of
1 and a p rounded to 16 bits would be all rounding.

The sum over v is an attention of x over the rows of W, too wide for one program's registers. So
the vocabulary is taken in blocks: ``project_kernel`` writes exp(s - tile's maximum) g for one block
of a few thousand tokens, ``collect_kernel`` multiplies it with the block's rows of W and adds. The
maximum is kept online (Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv
1805.02867, algorithm 3), so logits are computed once, and never more than one block of them.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl

from dkn_engine.ops._triton import blocks
from dkn_engine.ops._triton.blocks import dot, power_of_2, tanh
from dkn_engine.ops.answer_probability.tail import Head, behind_norm


@triton.jit
def project_kernel(
    x,  # [N, d]
    weight,  # [V, d]
    bias,  # [V] or None
    targets,  # int64 [N]
    exps,  # [N, s_e], contiguous, or None
    tops,  # float32 [N, tiles], contiguous: maximum of each tile's logits
    sums,  # float32 [N, tiles], contiguous: sum of exp(s - maximum)
    gold,  # float32 [2, N]: the target's logit s_t, and g_t
    n,
    v,
    d,
    first,  # of the vocabulary block
    s_e,  # a multiple of BV
    s_x_n,
    s_x_d,
    s_w_v,
    s_w_d,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    BN: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    tile, tiles = tl.program_id(1), tl.num_programs(1)
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    o_c = tile.to(tl.int64) * BV + tl.arange(0, BV)  # [BV] in the block
    o_v = first + o_c  # [BV] in the vocabulary
    m_n, m_v = o_n < n, o_v < v
    s = tl.zeros([BN, BV], dtype=tl.float32)
    for start in range(0, d, BD):
        o_d = start + tl.arange(0, BD).to(tl.int64)
        m_d = o_d < d
        p_x = x + o_n[:, None] * s_x_n + o_d[None, :] * s_x_d
        b_x = tl.load(p_x, mask=m_n[:, None] & m_d[None, :], other=0.0)  # [BN, BD]
        p_w = weight + o_v[None, :] * s_w_v + o_d[:, None] * s_w_d
        b_w = tl.load(p_w, mask=m_v[None, :] & m_d[:, None], other=0.0)  # [BD, BV]
        s = dot(b_x, b_w, s, "ieee")
    if bias is not None:
        s += tl.load(bias + o_v, mask=m_v, other=0.0).to(tl.float32)[None, :]
    s *= scale
    if CAPPED:
        t = tanh(s / softcap)
        s = softcap * t
        g = 1 - t * t
    else:
        g = tl.full([BN, BV], 1.0, dtype=tl.float32)
    # The target as a column of this tile; another tile has it unless it is one of the columns.
    column = tl.load(targets + o_n, mask=m_n, other=-1) - first - tile.to(tl.int64) * BV
    has = (column >= 0) & (column < tl.minimum(BV, v - first - tile * BV)) & m_n
    hit = tl.arange(0, BV)[None, :] == column[:, None]
    tl.store(gold + o_n, tl.sum(tl.where(hit, s, 0.0), axis=1), mask=has)
    tl.store(gold + n + o_n, tl.sum(tl.where(hit, g, 0.0), axis=1), mask=has)
    s = tl.where(m_v[None, :], s, float("-inf"))
    top = tl.max(s, axis=1)
    e = tl.exp(s - top[:, None])
    tl.store(tops + o_n * tiles + tile, top, mask=m_n)
    tl.store(sums + o_n * tiles + tile, tl.sum(e, axis=1), mask=m_n)
    if exps is not None:
        # Behind the vocabulary's end, too, where e is 0.
        p_e = exps + o_n[:, None] * s_e + o_c[None, :]
        b_e = tl.where(hit, 0.0, e * g)
        tl.store(p_e, b_e.to(exps.dtype.element_ty), mask=m_n[:, None])


@triton.jit
def collect_kernel(
    exps,  # [N, s_e], contiguous
    weight,  # [V, d]
    tops,  # float32 [N, tiles], contiguous
    top,  # float32 [N], the maximum so far, this block included
    decay,  # float32 [N], exp(maximum before - top)
    total,  # float32 [N, d], contiguous, added to in place
    n,
    v,
    d,
    first,
    s_e,
    s_w_v,
    s_w_d,
    BN: tl.constexpr,
    BV: tl.constexpr,  # tile of the tops
    BC: tl.constexpr,  # a divisor of BV
    BD: tl.constexpr,
):
    tiles = tl.cdiv(tl.minimum(s_e, v - first), BV)
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    o_d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD)  # [BD]
    m_n, m_d = o_n < n, o_d < d
    m_out = m_n[:, None] & m_d[None, :]
    p_total = total + o_n[:, None] * d + o_d[None, :]
    b_decay = tl.load(decay + o_n, mask=m_n, other=0.0)
    b_top = tl.load(top + o_n, mask=m_n, other=0.0)
    acc = tl.load(p_total, mask=m_out, other=0.0) * b_decay[:, None]
    for start in range(0, tiles * BV, BC):
        o_c = start + tl.arange(0, BC).to(tl.int64)  # [BC]
        m_c = first + o_c < v
        # How far the tile's own maximum lies below the row's; all of [start, start + BC) is in it.
        below = tl.load(tops + o_n * tiles + start // BV, mask=m_n, other=0.0) - b_top
        p_e = exps + o_n[:, None] * s_e + o_c[None, :]
        b_e = tl.load(p_e, mask=m_n[:, None], other=0.0)  # [BN, BC]
        b_e = b_e.to(tl.float32) * tl.exp(below)[:, None]
        p_w = weight + (first + o_c)[:, None] * s_w_v + o_d[None, :] * s_w_d
        b_w = tl.load(p_w, mask=m_c[:, None] & m_d[None, :], other=0.0)  # [BC, BD]
        acc = dot(b_e.to(b_w.dtype), b_w, acc, "ieee")
    tl.store(p_total, acc, mask=m_out)


def block_sizes(n: int, d: int, short: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Tiles of ``project_kernel`` and of ``collect_kernel``, as large as registers allow.

    Rows that are not a whole number of vectors are read number by number, with an address each.
    """
    odd = 1 if d % 16 else 0
    rows = power_of_2(n, 16, (128 if short else 64) >> odd)
    deep = 64 if short else 32
    both = {"BN": rows, "BV": 64, "num_stages": 3}
    project = both | {"BD": deep, "num_warps": 8 if rows == 128 else 4}
    wide = (128 if short else 64) >> odd
    collect = both | {"BC": deep, "BD": wide, "num_warps": 8 if rows >= 64 else 4}
    return project, collect


@torch.no_grad()
def _log_probability(
    head: Head, x: torch.Tensor, targets: torch.Tensor, gradient: bool, *, block: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability ``[N]`` of the targets, and its gradient ``[N, d]`` in ``x``, in float32."""
    targets = targets.contiguous()
    bias = None if head.bias is None else head.bias.contiguous()  # a number a token, read in a row
    (n, d), v = x.shape, head.weight.shape[0]
    project, collect = block_sizes(n, d, x.element_size() == 2)
    tile, capped = project["BV"], head.softcap is not None
    # A target outside the vocabulary is met by no program; NaN shows it.
    gold = torch.full((2, n), float("nan"), dtype=torch.float32, device=x.device)
    top = gold.new_full((n,), float("-inf"))
    sums, total = gold.new_zeros(n), gold.new_zeros(n, d) if gradient else None
    wide = min(block, triton.cdiv(v, tile) * tile)
    exps = None if total is None else x.new_empty(n, wide)
    rows, strides = triton.cdiv(n, project["BN"]), head.weight.stride()
    scaling = (float(head.scale), float(head.softcap or 0.0))
    for first in range(0, v, block) if n else ():
        tops = gold.new_empty(n, triton.cdiv(min(wide, v - first), tile))
        parts = torch.empty_like(tops)
        blocks.launch(
            project_kernel,
            (rows, tops.shape[1]),
            *(x, head.weight, bias, targets, exps, tops, parts, gold, n, v, d, first),
            *(0 if exps is None else wide, *x.stride(), *strides, *scaling),
            CAPPED=capped,
            **project,
        )
        above = torch.maximum(top, tops.amax(1))
        decay = torch.exp(top - above)
        sums = sums * decay + (parts * torch.exp(tops - above.unsqueeze(1))).sum(1)
        top = above
        if exps is not None:
            blocks.launch(
                collect_kernel,
                (rows, triton.cdiv(d, collect["BD"])),
                *(exps, head.weight, tops, top, decay, total, n, v, d, first, wide, *strides),
                **collect,
            )
    log_p = (gold[0] - top) - torch.log(sums)  # in this order no digit of a large maximum is lost
    if total is None:
        return log_p, None
    own = head.weight[targets].float() * (-torch.expm1(log_p) * gold[1]).unsqueeze(-1)
    return log_p, head.scale * (own - total / sums.unsqueeze(-1))


def answer_probability(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    objective: str,
    gradient: bool,
    *,
    block: int = 8192,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As the op's; ``block`` tokens' exponentials are held at once, a multiple of 64."""
    log_probability = partial(_log_probability, block=block)
    return behind_norm(log_probability, head, hidden, targets, objective, gradient)
