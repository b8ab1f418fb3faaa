"""Products of a few rows with a weight matrix, which are bound by reading it.

Schedule: a program takes BLOCK_N rows of W and 16 rows of x. It requests BLOCK_K columns of W at
once, usually all of them, so that nothing waits in a loop. Each warp takes one slice of them, as
one batch of a batched product, and the slices are added at the end in a fixed order. The product is
W @ x^T: the few rows of x are the short side of the tensor-core instruction. As a program holds
whole rows of x, the layer norm needs no second read. (In float32 it does not hold them; there a
separate launch computes the rows' statistics.) More than 16 rows of x read W again, from L2.

Programmatic dependent launch (PDL): with `pdl` the kernel requests its weights before it waits for
the kernel that makes its input.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bark_fast.kernels.triton.epilogue import epilogue


@triton.jit
def normalise(
    x,
    mean,
    rstd,
    k,
    norm_weight_ptr,
    norm_bias_ptr,
    K: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
):
    """Return the layer norm of the columns k of x [SLICES, BLOCK_M, SLICE], in x's type."""
    gamma = tl.load(norm_weight_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    y = (x.to(tl.float32) - mean[None, :, None]) * rstd[None, :, None] * gamma
    if HAS_NORM_BIAS:
        y += tl.load(norm_bias_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    return y.to(x.dtype)


@triton.jit
def decode_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    row_stats_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    residual_ptr,
    out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slot_mapping_ptr,
    M,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SLICES: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    QKV: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    SLICE: tl.constexpr = BLOCK_K // SLICES
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    # [SLICES, 1, SLICE]: the columns, as a batch of slices.
    k = (tl.arange(0, SLICES)[:, None] * SLICE + tl.arange(0, SLICE)[None, :])[:, None, :]
    w_ptrs = weight_ptr + n[None, :, None].to(tl.int64) * K + k
    x_ptrs = x_ptr + m[None, :, None] * K + k
    n_mask, m_mask = (n < N)[None, :, None], (m < M)[None, :, None]
    w = tl.load(w_ptrs, mask=n_mask & (k < K), other=0.0)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    x = tl.load(x_ptrs, mask=m_mask & (k < K), other=0.0)
    if HAS_NORM:
        if K <= BLOCK_K:
            whole = x.to(tl.float32)
            mean = tl.sum(tl.sum(whole, axis=2), axis=0) / K
            centred = tl.where(k < K, whole - mean[None, :, None], 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(centred * centred, axis=2), axis=0) / K + eps)
        else:
            mean = tl.load(row_stats_ptr + m * 2, mask=m < M, other=0.0)
            rstd = tl.load(row_stats_ptr + m * 2 + 1, mask=m < M, other=0.0)
        x = normalise(x, mean, rstd, k, norm_weight_ptr, norm_bias_ptr, K, HAS_NORM_BIAS)
    acc = tl.dot(w, tl.permute(x, (0, 2, 1)), input_precision=PRECISION, out_dtype=tl.float32)
    for start in range(BLOCK_K, K, BLOCK_K):
        at = start + k
        w = tl.load(w_ptrs + start, mask=n_mask & (at < K), other=0.0)
        x = tl.load(x_ptrs + start, mask=m_mask & (at < K), other=0.0)
        if HAS_NORM:
            x = normalise(x, mean, rstd, at, norm_weight_ptr, norm_bias_ptr, K, HAS_NORM_BIAS)
        acc = tl.dot(w, tl.permute(x, (0, 2, 1)), acc, input_precision=PRECISION)
    mask = (n < N)[:, None] & (m < M)[None, :]
    epilogue(
        tl.sum(acc, axis=0), m[None, :], n[:, None], mask, bias_ptr, residual_ptr, out_ptr,
        k_pages_ptr, v_pages_ptr, slot_mapping_ptr, M, N, HAS_BIAS, GELU, HAS_RESIDUAL, QKV, HEADS,
        HEAD_SIZE, PAGE_SIZE,
    )  # fmt: skip
