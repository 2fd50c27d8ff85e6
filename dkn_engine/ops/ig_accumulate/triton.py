"""``ig_accumulate`` fused: nothing of size ``[points, F]`` is written.

For rule k, segment m and neuron f (Sundararajan et al., arXiv 1703.01365, equation 1, summed by a
quadrature rule over the points s of segment m):

    pre:   out[k, m, f] = factor[m, f] sum_s w[k, s] (G W_out^T)[s, f] up[m, f] act'(z[s, f])
           with z[s, f] = baseline[m, f] + alpha[s] delta[m, f]
    post:  out[k, m, f] = factor[m, f] (sum_s w[k, s] G[s]) . W_out[f]

Segments are ragged. Points are read through an order that sorts them by segment, so a program's
segments are one run of points, filled into tiles without a gap between segments; only the run's
last tile has empty rows. In ``pre`` a tile's points are summed into their segments by a second
dot, with a matrix that holds w[k, s] where s lies in m and 0 elsewhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dkn_engine.ops._triton import blocks
from dkn_engine.ops._triton.blocks import dot, exact_precision, power_of_2, slope


@triton.jit
def pre_kernel(
    gradients,  # [N, d]
    weights,  # float32 [K, N], contiguous
    w_out,  # [F, d]
    factor,  # [M, F], contiguous, as baseline, delta and up
    alphas,  # float32 [N]
    baseline,
    delta,
    up,  # or None
    order,  # int64 [N], points sorted by segment
    segments,  # int64 [N], sorted
    offsets,  # int64 [M + 1], where each segment starts in the sorted points
    out,  # float32 [K, M, F], contiguous
    n,
    m,
    f,
    d,
    s_g_n,
    s_g_d,
    s_w_f,
    s_w_d,
    K: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,  # segments a program
    BR: tl.constexpr,  # >= K * BM rows of sums, ordered by (rule, segment)
    BS: tl.constexpr,
    BF: tl.constexpr,
    BD: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BM
    o_f = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)  # [BF]
    o_r = tl.arange(0, BR)
    rule = (o_r // BM).to(tl.int64)  # [BR]
    member = first + o_r % BM  # [BR]
    m_f, m_r = o_f < f, (rule < K) & (member < m)
    start = tl.load(offsets + first)
    end = tl.load(offsets + tl.minimum(first + BM, m))
    total = tl.zeros([BR, BF], dtype=tl.float32)
    for tile in range(start, end, BS):
        o_s = tile + tl.arange(0, BS)
        m_s = o_s < end
        point = tl.load(order + o_s, mask=m_s, other=0)  # [BS]
        segment = tl.load(segments + o_s, mask=m_s, other=0)  # [BS]
        local = tl.zeros([BS, BF], dtype=tl.float32)
        for column in range(0, d, BD):
            o_d = column + tl.arange(0, BD).to(tl.int64)
            m_d = o_d < d
            p_g = gradients + point[:, None] * s_g_n + o_d[None, :] * s_g_d
            b_g = tl.load(p_g, mask=m_s[:, None] & m_d[None, :], other=0.0)  # [BS, BD]
            p_w = w_out + o_d[:, None] * s_w_d + o_f[None, :] * s_w_f
            b_w = tl.load(p_w, mask=m_d[:, None] & m_f[None, :], other=0.0)  # [BD, BF]
            local = dot(b_g, b_w, local, PRECISION)
        at = segment[:, None] * f + o_f[None, :]  # [BS, BF]
        inside = m_s[:, None] & m_f[None, :]
        alpha = tl.load(alphas + point, mask=m_s, other=0.0)[:, None]
        z = tl.load(baseline + at, mask=inside, other=0.0).to(tl.float32)
        z += alpha * tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        local *= slope(z, KIND)
        if up is not None:
            local *= tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
        belongs = m_r[:, None] & m_s[None, :] & (member[:, None] == segment[None, :])
        p_k = weights + rule[:, None] * n + point[None, :]
        total = dot(tl.load(p_k, mask=belongs, other=0.0), local, total, "ieee")
    m_out = m_r[:, None] & m_f[None, :]
    p_factor = factor + member[:, None] * f + o_f[None, :]
    total *= tl.load(p_factor, mask=m_out, other=0.0).to(tl.float32)
    tl.store(out + (rule * m + member)[:, None] * f + o_f[None, :], total, mask=m_out)


@triton.jit
def sum_kernel(
    gradients,  # [N, d]
    weights,  # float32 [K, N], contiguous
    order,
    offsets,
    out,  # float32 [K, M, d], contiguous
    n,
    m,
    d,
    s_g_n,
    s_g_d,
    K: tl.constexpr,
    BK: tl.constexpr,
    BS: tl.constexpr,
    BD: tl.constexpr,
):
    """One segment's points, weighted and summed; each gradient is read once for all rules."""
    member = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1).to(tl.int64) * BD + tl.arange(0, BD)  # [BD]
    o_k = tl.arange(0, BK).to(tl.int64)
    m_d, m_k = o_d < d, o_k < K
    start, end = tl.load(offsets + member), tl.load(offsets + member + 1)
    total = tl.zeros([BK, BD], dtype=tl.float32)
    for tile in range(start, end, BS):
        o_s = tile + tl.arange(0, BS)
        m_s = o_s < end
        point = tl.load(order + o_s, mask=m_s, other=0)
        p_g = gradients + point[:, None] * s_g_n + o_d[None, :] * s_g_d
        b_g = tl.load(p_g, mask=m_s[:, None] & m_d[None, :], other=0.0).to(tl.float32)  # [BS, BD]
        p_k = weights + o_k[:, None] * n + point[None, :]
        b_k = tl.load(p_k, mask=m_k[:, None] & m_s[None, :], other=0.0)  # [BK, BS]
        total += tl.sum(b_k[:, :, None] * b_g[None, :, :], axis=1)
    p_out = out + (o_k * m + member)[:, None] * d + o_d[None, :]
    tl.store(p_out, total, mask=m_k[:, None] & m_d[None, :])


@triton.jit
def project_kernel(
    sums,  # float32 [K * M, d], contiguous
    w_out,  # [F, d]
    factor,  # [M, F], contiguous
    out,  # float32 [K * M, F], contiguous
    rows,
    m,
    f,
    d,
    s_w_f,
    s_w_d,
    PRECISION: tl.constexpr,
    BR: tl.constexpr,
    BF: tl.constexpr,
    BD: tl.constexpr,
):
    """The projection to F in float32; its epilogue multiplies by the segment's factor."""
    o_r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)  # [BR]
    o_f = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)  # [BF]
    m_r, m_f = o_r < rows, o_f < f
    total = tl.zeros([BR, BF], dtype=tl.float32)
    for column in range(0, d, BD):
        o_d = column + tl.arange(0, BD).to(tl.int64)
        m_d = o_d < d
        p_a = sums + o_r[:, None] * d + o_d[None, :]
        b_a = tl.load(p_a, mask=m_r[:, None] & m_d[None, :], other=0.0)  # [BR, BD]
        p_w = w_out + o_d[:, None] * s_w_d + o_f[None, :] * s_w_f
        b_w = tl.load(p_w, mask=m_d[:, None] & m_f[None, :], other=0.0).to(tl.float32)  # [BD, BF]
        total = dot(b_a, b_w, total, PRECISION)
    m_out = m_r[:, None] & m_f[None, :]
    p_factor = factor + (o_r % m)[:, None] * f + o_f[None, :]
    total *= tl.load(p_factor, mask=m_out, other=0.0).to(tl.float32)
    tl.store(out + o_r[:, None] * f + o_f[None, :], total, mask=m_out)


def pre_sizes(k: int, n: int, m: int, short: bool, odd: bool) -> dict[str, int]:
    """Tiles of ``pre_kernel``: as many segments a program as keep the sums in registers.

    ``odd`` rows, not a whole number of vectors, are read number by number, with an address each.
    """
    per_program = power_of_2(m, 1, max(1, (32 if odd else 64) // power_of_2(k, 1, 32)))
    return {
        "BM": per_program,
        "BR": power_of_2(k * per_program, 16, 1 << 30),
        "BS": power_of_2(n, 16, 64 if short else 32),
        "BF": 32 if odd and not short else 64,
        "BD": 64 if short else 32,
        "num_warps": 8 if short else 4,
        "num_stages": 3,
    }


def sum_sizes(k: int, d: int) -> dict[str, int]:
    """Tiles of ``sum_kernel``: about 4096 products held at once."""
    rules = power_of_2(k, 1, 1 << 30)
    wide = power_of_2(d, 16, max(16, 512 // rules))
    return {"BK": rules, "BS": max(1, 4096 // (rules * wide)), "BD": wide, "num_warps": 4}


def project_sizes(rows: int) -> dict[str, int]:
    """Tiles of ``project_kernel``: few rows, so that W_out is read once."""
    return {"BR": power_of_2(rows, 16, 64), "BF": 64, "BD": 32, "num_warps": 4, "num_stages": 3}


def ig_accumulate(
    gradients: torch.Tensor,
    weights: torch.Tensor,
    segments: torch.Tensor,
    w_out: torch.Tensor,
    factor: torch.Tensor,
    path: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, str] | None,
) -> torch.Tensor:
    k, n = weights.shape
    m, f = factor.shape
    out = torch.empty(k, m, f, dtype=torch.float32, device=gradients.device)
    if out.numel() == 0:
        return out
    weights, factor = weights.to(torch.float32).contiguous(), factor.contiguous()
    found, order = torch.sort(segments, stable=True)
    offsets = torch.searchsorted(found, torch.arange(m + 1, device=found.device))
    short = w_out.element_size() == 2
    if path is None:
        sums = _summed(gradients, weights, order, offsets, m)
        sizes = project_sizes(k * m)
        blocks.launch(
            project_kernel,
            (triton.cdiv(k * m, sizes["BR"]), triton.cdiv(f, sizes["BF"])),
            *(sums, w_out, factor, out, k * m, m, f, w_out.shape[1], *w_out.stride()),
            PRECISION=exact_precision(short),
            **sizes,
        )
        return out
    alphas, baseline, delta, up, kind = path
    sizes = pre_sizes(k, n, m, short, bool(gradients.shape[1] % 16 or f % 16))
    blocks.launch(
        pre_kernel,
        (triton.cdiv(m, sizes["BM"]), triton.cdiv(f, sizes["BF"])),
        *(gradients, weights, w_out, factor),
        *(alphas.to(torch.float32).contiguous(), baseline.contiguous(), delta.contiguous()),
        *(None if up is None else up.contiguous(), order, found, offsets, out),
        *(n, m, f, gradients.shape[1], *gradients.stride(), *w_out.stride()),
        K=k,
        KIND=kind,
        PRECISION="ieee",
        **sizes,
    )
    return out


def _summed(
    gradients: torch.Tensor,
    weights: torch.Tensor,
    order: torch.Tensor,
    offsets: torch.Tensor,
    m: int,
) -> torch.Tensor:
    """``[K, M, d]``: the weighted sums of each segment's gradients, in float32."""
    (k, n), d = weights.shape, gradients.shape[1]
    sums = torch.empty(k, m, d, dtype=torch.float32, device=gradients.device)
    sizes = sum_sizes(k, d)
    blocks.launch(
        sum_kernel,
        (m, triton.cdiv(d, sizes["BD"])),
        *(gradients, weights, order, offsets, sums, n, m, d, *gradients.stride()),
        K=k,
        **sizes,
    )
    return sums
