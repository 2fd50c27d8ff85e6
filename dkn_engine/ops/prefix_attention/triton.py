"""``prefix_attention``, forward and backward, without a matrix of scores in memory.

Row r of context c attends to the visible prefix positions of c and to itself:

    s_j = cap(scaling q . k_j),  p = softmax(s),  o = sum_j p_j v_j

over j in the prefix and the row's own key. The softmax is taken online over blocks of the prefix
(Dao et al., FlashAttention, arXiv 2205.14135, algorithm 1), starting from the row itself, which is
always visible, so that no row is empty. Backward (ibid., section B.2), with g = 1 - (s/cap)^2, or
1 without a cap:

    ds_j = p_j (do . v_j - do . o) g_j scaling
    dq = sum_j ds_j k_j,   dk = ds_own q,   dv = p_own do

where dk and dv are sums over the query heads that share a key head. do . o is taken from o before
it is rounded to 16 bits, since a row whose weight lies on one key has do . v_j - do . o near 0. The
prefix is clean: it gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from dkn_engine.ops._triton import blocks
from dkn_engine.ops._triton.blocks import dot, power_of_2, tanh


@triton.jit
def capped(s, softcap, CAPPED: tl.constexpr):
    if CAPPED:
        s = softcap * tanh(s / softcap)
    return s


@triton.jit
def prefix_block(
    prefix_key,
    prefix_value,
    visible,
    context,
    kv,
    start,
    n_prefix,
    o_d,
    o_v,
    m_d,
    m_v,
    s_pk_c,
    s_pk_h,
    s_pk_t,
    s_pv_c,
    s_pv_h,
    s_pv_t,
    s_m_c,
    s_m_t,
    BT: tl.constexpr,
):
    """Keys ``[BT, BD]`` and values ``[BT, BV]`` of some prefix positions, and which are seen.

    What is hidden may be anything, and nothing times infinity is not nothing: it is not loaded.
    """
    o_t = start + tl.arange(0, BT).to(tl.int64)
    p_seen = visible + context * s_m_c + o_t * s_m_t
    seen = tl.load(p_seen, mask=o_t < n_prefix, other=0) != 0  # [BT]
    p_pk = prefix_key + context * s_pk_c + kv * s_pk_h + o_t[:, None] * s_pk_t + o_d[None, :]
    p_pv = prefix_value + context * s_pv_c + kv * s_pv_h + o_t[:, None] * s_pv_t + o_v[None, :]
    b_pk = tl.load(p_pk, mask=seen[:, None] & m_d[None, :], other=0.0)
    b_pv = tl.load(p_pv, mask=seen[:, None] & m_v[None, :], other=0.0)
    return b_pk, b_pv, seen


@triton.jit
def forward_kernel(
    query,  # [C, H, R, D]; the last dimension of every tensor is contiguous
    key,  # [C, H_kv, R, D]
    value,  # [C, H_kv, R, Dv]
    prefix_key,  # [C, H_kv, T, D]
    prefix_value,  # [C, H_kv, T, Dv]
    visible,  # int8 [C, T]
    out,  # [C, H, R, Dv], contiguous
    wide,  # the same in float32, or None where it is float32
    stats,  # float32 [2, C, H, R], contiguous: a row's largest score, sum of exp(score - largest)
    contexts,
    heads,
    group,
    rows,
    n_prefix,
    d,
    dv,
    s_q_c,
    s_q_h,
    s_q_r,
    s_k_c,
    s_k_h,
    s_k_r,
    s_v_c,
    s_v_h,
    s_v_r,
    s_pk_c,
    s_pk_h,
    s_pk_t,
    s_pv_c,
    s_pv_h,
    s_pv_t,
    s_m_c,
    s_m_t,
    scaling,
    softcap,
    CAPPED: tl.constexpr,
    BR: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
):
    context = tl.program_id(0).to(tl.int64) // heads
    head = tl.program_id(0).to(tl.int64) % heads
    kv = head // group
    o_r = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)  # [BR]
    o_d, o_v = tl.arange(0, BD).to(tl.int64), tl.arange(0, BV).to(tl.int64)
    m_r, m_d, m_v = o_r < rows, o_d < d, o_v < dv
    m_rd, m_rv = m_r[:, None] & m_d[None, :], m_r[:, None] & m_v[None, :]
    p_q = query + context * s_q_c + head * s_q_h + o_r[:, None] * s_q_r + o_d[None, :]
    p_k = key + context * s_k_c + kv * s_k_h + o_r[:, None] * s_k_r + o_d[None, :]
    p_v = value + context * s_v_c + kv * s_v_h + o_r[:, None] * s_v_r + o_v[None, :]
    b_q = tl.load(p_q, mask=m_rd, other=0.0)  # [BR, BD]
    b_k = tl.load(p_k, mask=m_rd, other=0.0).to(tl.float32)
    top = capped(tl.sum(b_q.to(tl.float32) * b_k, axis=1) * scaling, softcap, CAPPED)  # [BR]
    total = tl.full([BR], 1.0, dtype=tl.float32)
    acc = tl.load(p_v, mask=m_rv, other=0.0).to(tl.float32)  # [BR, BV]
    for start in range(0, n_prefix, BT):
        b_pk, b_pv, seen = prefix_block(
            *(prefix_key, prefix_value, visible, context, kv, start, n_prefix, o_d, o_v),
            *(m_d, m_v, s_pk_c, s_pk_h, s_pk_t, s_pv_c, s_pv_h, s_pv_t, s_m_c, s_m_t, BT),
        )
        s = dot(b_q, tl.trans(b_pk), tl.zeros([BR, BT], dtype=tl.float32), "ieee") * scaling
        s = tl.where(seen[None, :], capped(s, softcap, CAPPED), float("-inf"))
        above = tl.maximum(top, tl.max(s, axis=1))
        p = tl.exp(s - above[:, None])
        keep = tl.exp(top - above)
        total = total * keep + tl.sum(p, axis=1)
        acc = dot(p.to(b_pv.dtype), b_pv, acc * keep[:, None], "ieee")
        top = above
    at = (context * heads + head) * rows + o_r
    tl.store(stats + at, top, mask=m_r)
    tl.store(stats + contexts * heads * rows + at, total, mask=m_r)
    acc /= total[:, None]
    tl.store(out + at[:, None] * dv + o_v[None, :], acc.to(out.dtype.element_ty), mask=m_rv)
    if wide is not None:
        tl.store(wide + at[:, None] * dv + o_v[None, :], acc, mask=m_rv)


@triton.jit
def backward_kernel(
    query,
    key,
    value,
    prefix_key,
    prefix_value,
    visible,
    stats,
    wide,  # float32 [C, H, R, Dv], contiguous
    d_out,  # [C, H, R, Dv], contiguous
    d_query,  # [C, H, R, D], contiguous
    d_key,  # [C, H_kv, R, D], contiguous
    d_value,  # [C, H_kv, R, Dv], contiguous
    contexts,
    heads,
    group,
    rows,
    n_prefix,
    d,
    dv,
    s_q_c,
    s_q_h,
    s_q_r,
    s_k_c,
    s_k_h,
    s_k_r,
    s_v_c,
    s_v_h,
    s_v_r,
    s_pk_c,
    s_pk_h,
    s_pk_t,
    s_pv_c,
    s_pv_h,
    s_pv_t,
    s_m_c,
    s_m_t,
    scaling,
    softcap,
    CAPPED: tl.constexpr,
    BR: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
):
    """One key head of one context and some rows: the query heads of its group, one by one."""
    kv_heads = heads // group
    context = tl.program_id(0).to(tl.int64) // kv_heads
    kv = tl.program_id(0).to(tl.int64) % kv_heads
    o_r = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)
    o_d, o_v = tl.arange(0, BD).to(tl.int64), tl.arange(0, BV).to(tl.int64)
    m_r, m_d, m_v = o_r < rows, o_d < d, o_v < dv
    m_rd, m_rv = m_r[:, None] & m_d[None, :], m_r[:, None] & m_v[None, :]
    p_k = key + context * s_k_c + kv * s_k_h + o_r[:, None] * s_k_r + o_d[None, :]
    p_v = value + context * s_v_c + kv * s_v_h + o_r[:, None] * s_v_r + o_v[None, :]
    b_k = tl.load(p_k, mask=m_rd, other=0.0).to(tl.float32)  # [BR, BD]
    b_v = tl.load(p_v, mask=m_rv, other=0.0).to(tl.float32)  # [BR, BV]
    b_dk = tl.zeros([BR, BD], dtype=tl.float32)
    b_dv = tl.zeros([BR, BV], dtype=tl.float32)
    for member in range(group):
        head = kv * group + member
        at = (context * heads + head) * rows + o_r  # [BR]
        p_q = query + context * s_q_c + head * s_q_h + o_r[:, None] * s_q_r + o_d[None, :]
        b_q = tl.load(p_q, mask=m_rd, other=0.0)  # [BR, BD]
        b_do = tl.load(d_out + at[:, None] * dv + o_v[None, :], mask=m_rv, other=0.0)  # [BR, BV]
        b_top = tl.load(stats + at, mask=m_r, other=0.0)
        b_total = tl.load(stats + contexts * heads * rows + at, mask=m_r, other=1.0)
        s = capped(tl.sum(b_q.to(tl.float32) * b_k, axis=1) * scaling, softcap, CAPPED)
        p = tl.exp(s - b_top) / b_total
        dp = tl.sum(b_do.to(tl.float32) * b_v, axis=1)
        b_o = tl.load(wide + at[:, None] * dv + o_v[None, :], mask=m_rv, other=0.0)
        inner = tl.sum(b_do.to(tl.float32) * b_o, axis=1)  # [BR]
        ds = p * (dp - inner) * scaling
        if CAPPED:
            ds *= 1 - (s / softcap) * (s / softcap)
        b_dk += ds[:, None] * b_q.to(tl.float32)
        b_dv += p[:, None] * b_do.to(tl.float32)
        b_dq = ds[:, None] * b_k
        for start in range(0, n_prefix, BT):
            b_pk, b_pv, seen = prefix_block(
                *(prefix_key, prefix_value, visible, context, kv, start, n_prefix, o_d, o_v),
                *(m_d, m_v, s_pk_c, s_pk_h, s_pk_t, s_pv_c, s_pv_h, s_pv_t, s_m_c, s_m_t, BT),
            )
            empty = tl.zeros([BR, BT], dtype=tl.float32)
            st = capped(dot(b_q, tl.trans(b_pk), empty, "ieee") * scaling, softcap, CAPPED)
            pt = tl.exp(st - b_top[:, None]) / b_total[:, None]
            pt = tl.where(seen[None, :], pt, 0.0)  # [BR, BT]
            dst = pt * (dot(b_do, tl.trans(b_pv), empty, "ieee") - inner[:, None]) * scaling
            if CAPPED:
                dst *= 1 - (st / softcap) * (st / softcap)
            b_dq = dot(dst.to(b_pk.dtype), b_pk, b_dq, "ieee")
        p_dq = d_query + at[:, None] * d + o_d[None, :]
        tl.store(p_dq, b_dq.to(d_query.dtype.element_ty), mask=m_rd)
    at_kv = (context * kv_heads + kv) * rows + o_r
    p_dk = d_key + at_kv[:, None] * d + o_d[None, :]
    p_dv = d_value + at_kv[:, None] * dv + o_v[None, :]
    tl.store(p_dk, b_dk.to(d_key.dtype.element_ty), mask=m_rd)
    tl.store(p_dv, b_dv.to(d_value.dtype.element_ty), mask=m_rv)


def block_sizes(
    rows: int, n_prefix: int, d: int, dv: int, short: bool, backward: bool
) -> dict[str, int]:
    """Whole heads, so wide heads and wide numbers get fewer rows and positions at once.

    So do heads that are not a whole number of vectors: each number has an address of its own.
    """
    wide, wide_v = power_of_2(d, 16, 1 << 30), power_of_2(dv, 16, 1 << 30)
    odd = d % 16 != 0 or dv % 16 != 0
    long = backward and not short
    budget = 1024 if odd or long else 4096 if short else 2048
    most = max(16, min(64, budget // max(wide, wide_v)))
    return {
        "BR": power_of_2(rows, 16, most),
        "BT": power_of_2(n_prefix, 16, most // 2 if backward and most > 16 else most),
        "BD": wide,
        "BV": wide_v,
        "num_warps": 8 if odd or (max(wide, wide_v) > 64 and not long) else 4,
        "num_stages": 2,
    }


def _dense(x: torch.Tensor) -> torch.Tensor:
    """The kernels take any strides but the last dimension's."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _arguments(
    inputs: tuple[torch.Tensor, ...], scaling: float, softcap: float | None
) -> tuple[Any, ...]:
    """Sizes, strides and scalars, as both kernels take them."""
    query, key, value, prefix_key, prefix_value, visible = inputs
    heads, kv_heads = query.shape[1], key.shape[1]
    sizes = (query.shape[0], heads, heads // kv_heads, query.shape[2], prefix_key.shape[2])
    strides = [s for x in (query, key, value, prefix_key, prefix_value) for s in x.stride()[:3]]
    cap = 0.0 if softcap is None else softcap
    widths = (query.shape[3], value.shape[3])
    return (*sizes, *widths, *strides, *visible.stride(), scaling, cap)


class PrefixAttention(torch.autograd.Function):
    """Differentiable in query, key and value."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        *dense, visible, scaling, softcap = given
        inputs = (*map(_dense, dense), visible.view(torch.int8))
        query, value = inputs[0], inputs[2]
        shape = (*query.shape[:3], value.shape[3])
        out = torch.empty(shape, dtype=query.dtype, device=query.device)
        wide = None if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
        stats = torch.empty(2, *shape[:3], dtype=torch.float32, device=query.device)
        if out.numel():
            widths, short = (query.shape[3], shape[3]), query.element_size() == 2
            sizes = block_sizes(shape[2], inputs[3].shape[2], *widths, short, backward=False)
            blocks.launch(
                forward_kernel,
                (shape[0] * shape[1], triton.cdiv(shape[2], sizes["BR"])),
                *(*inputs, out, wide, stats, *_arguments(inputs, scaling, softcap)),
                CAPPED=softcap is not None,
                **sizes,
            )
        ctx.save_for_backward(*inputs, stats, out if wide is None else wide)
        ctx.scaling, ctx.softcap = scaling, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        *inputs, stats, wide = ctx.saved_tensors
        query, key, value = inputs[:3]
        d_out = grad_outputs[0].contiguous()
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:3]]
        if d_out.numel():
            (c, _, r, d), dv = query.shape, value.shape[3]
            short = query.element_size() == 2
            sizes = block_sizes(r, inputs[3].shape[2], d, dv, short, backward=True)
            blocks.launch(
                backward_kernel,
                (c * key.shape[1], triton.cdiv(r, sizes["BR"])),
                *(*inputs, stats, wide, d_out, *found),
                *_arguments(tuple(inputs), ctx.scaling, ctx.softcap),
                CAPPED=ctx.softcap is not None,
                **sizes,
            )
        return (*found, None, None, None, None, None)


def prefix_attention(*given: Any) -> torch.Tensor:
    """See ``reference.py``, which has the same arguments."""
    out: torch.Tensor = PrefixAttention.apply(*given)
    return out
