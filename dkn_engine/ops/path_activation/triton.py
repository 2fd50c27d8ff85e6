"""``path_activation`` in one pass: ``act(x' + alpha (x - x')) * up``, read once, written once.

The path is that of integrated gradients (Sundararajan et al., arXiv 1703.01365, equation 1).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dkn_engine.ops._triton import blocks
from dkn_engine.ops._triton.blocks import activation, power_of_2


@triton.jit
def path_activation_kernel(
    alphas,  # float32 [N]
    baseline,  # [N, F]
    value,  # [N, F]
    up,  # [N, F] or None
    out,  # [N, F], contiguous
    n,
    f,
    s_baseline_n,
    s_baseline_f,
    s_value_n,
    s_value_f,
    s_up_n,
    s_up_f,
    KIND: tl.constexpr,
    BN: tl.constexpr,
    BF: tl.constexpr,
):
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    o_f = tl.program_id(1).to(tl.int64) * BF + tl.arange(0, BF)  # [BF]
    m_n, m = o_n < n, (o_n < n)[:, None] & (o_f < f)[None, :]
    b_alpha = tl.load(alphas + o_n, mask=m_n, other=0.0)[:, None]
    p_start = baseline + o_n[:, None] * s_baseline_n + o_f[None, :] * s_baseline_f
    p_end = value + o_n[:, None] * s_value_n + o_f[None, :] * s_value_f
    b_start = tl.load(p_start, mask=m, other=0.0).to(tl.float32)  # [BN, BF]
    b_end = tl.load(p_end, mask=m, other=0.0).to(tl.float32)
    b_out = activation(b_start + b_alpha * (b_end - b_start), KIND)
    if up is not None:
        p_up = up + o_n[:, None] * s_up_n + o_f[None, :] * s_up_f
        b_out *= tl.load(p_up, mask=m, other=0.0).to(tl.float32)
    p_out = out + o_n[:, None] * f + o_f[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m)


def block_sizes(f: int) -> dict[str, int]:
    """About 2048 elements a program: 16 a thread, two vectors of 16 bytes and more."""
    wide = power_of_2(f, 16, 1024)
    return {"BN": 2048 // wide, "BF": wide, "num_warps": 4}


def path_activation(
    alphas: torch.Tensor,
    baseline: torch.Tensor,
    value: torch.Tensor,
    up: torch.Tensor | None,
    kind: str,
) -> torch.Tensor:
    n, f = value.shape
    out = torch.empty(n, f, dtype=value.dtype, device=value.device)
    if out.numel() == 0:
        return out
    sizes = block_sizes(f)
    blocks.launch(
        path_activation_kernel,
        (triton.cdiv(n, sizes["BN"]), triton.cdiv(f, sizes["BF"])),
        alphas.to(torch.float32).contiguous(),
        baseline,
        value,
        up,
        out,
        n,
        f,
        *baseline.stride(),
        *value.stride(),
        *((0, 0) if up is None else up.stride()),
        KIND=kind,
        **sizes,
    )
    return out
