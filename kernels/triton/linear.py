"""Products with a weight matrix, and everything that precedes and follows them in a block.

There are two schedules. Which one runs is a property of the call, never of the number of rows, so
that a row's bits do not depend on its neighbours.

* `decode_kernel`: a program takes BLOCK_N rows of W and 16 rows of x. It requests BLOCK_K columns
  of W at once, usually all of them, so that nothing waits in a loop. Each warp takes one slice of
  them, as one batch of a batched product, and the slices are added at the end in a fixed order. The
  product is W @ x^T: the few rows of x are the short side of the tensor-core instruction. As a
  program holds whole rows of x, the layer norm needs no second read. (In float32 it does not hold
  them; there a separate launch computes the rows' statistics.) More than 16 rows of x read W again,
  from L2.
* `tile_kernel` (prefill and fine): tensor-core tiles of x @ W^T. The layer norm uses row statistics
  that were computed before, and is applied as the tile of x passes through registers.

Both add in float32 and round once, at the store.

Programmatic dependent launch (PDL): with `pdl` a decode kernel requests its weights before it waits
for the kernel that makes its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bark_fast.kernels.ops import LAYER_NORM_EPS, Norm, Weight
from bark_fast.kernels.triton.launch import (
    ALWAYS,
    can_launch_dependent,
    ceil_div,
    dot_precision,
    pdl_option,
)
from bark_fast.kernels.triton.norm import row_stats


@dataclass(frozen=True)
class DecodeLaunch:
    """The tiles of `decode_kernel`."""

    block_n: int
    block_m: int
    block_k: int
    num_warps: int  # also the number of slices of K


@dataclass(frozen=True)
class TileLaunch:
    """The tiles of `tile_kernel`."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


# 16 rows of W a program: N = 1024 makes 64 programs, 3072 and 4096 more than an H100 has
# multiprocessors. 16 rows of x are the fewest that the instruction takes. 16 x 1024 columns in
# flight are 32 KiB of half precision a program and a few MiB on the whole chip, as its memory
# latency requires, and 32 registers a thread with 8 warps.
DECODE = DecodeLaunch(block_n=16, block_m=16, block_k=1024, num_warps=8)
# Without tensor cores the operands of a product live in registers: fewer columns at a time.
DECODE_FLOAT32 = DecodeLaunch(block_n=16, block_m=16, block_k=128, num_warps=8)
# The usual tile of compute-bound half-precision products; the stages fit sm_80's 163 KiB too.
TILE = TileLaunch(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
# float32 runs without tensor cores; smaller tiles keep it within registers and shared memory.
TILE_FLOAT32 = TileLaunch(block_m=64, block_n=64, block_k=32, num_warps=4, num_stages=2)


@triton.jit
def epilogue(
    acc,
    m,
    n,
    mask,
    bias_ptr,
    residual_ptr,
    out_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slot_mapping_ptr,
    M,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    QKV: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    """Apply bias, GELU and residual to acc and store it; its element (i, j) is row m, column n.

    m and n broadcast to acc's shape, which may be transposed. With QKV the columns are queries,
    keys and values: queries go to `out`, the others to their slots in the pages.
    """
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if GELU:
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    if HAS_RESIDUAL:
        acc += tl.load(residual_ptr + m * N + n, mask=mask, other=0.0).to(tl.float32)
    y = acc.to(out_ptr.dtype.element_ty)
    if QKV:
        WIDTH: tl.constexpr = HEADS * HEAD_SIZE
        section = n // WIDTH
        column = n % WIDTH
        # [P, H, page_size, D]: the row's part of the address, and the column's part.
        slot = tl.load(slot_mapping_ptr + m, mask=m < M, other=-1)
        row = ((slot // PAGE_SIZE) * (HEADS * PAGE_SIZE) + slot % PAGE_SIZE) * HEAD_SIZE
        place = row + ((column // HEAD_SIZE) * (PAGE_SIZE * HEAD_SIZE) + column % HEAD_SIZE)
        tl.store(out_ptr + m * WIDTH + column, y, mask=mask & (section == 0))
        # A row without a slot (an empty row of the batch) writes nothing.
        tl.store(k_pages_ptr + place, y, mask=mask & (section == 1) & (slot >= 0))
        tl.store(v_pages_ptr + place, y, mask=mask & (section == 2) & (slot >= 0))
    else:
        tl.store(out_ptr + m * N + n, y, mask=mask)


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


# One kernel for every number of rows: nothing in it gains from knowing that they are many times 16.
@triton.jit(do_not_specialize=["M"])
def tile_kernel(
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
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
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
):
    # Neighbouring programs share a tile of W and go down the rows, so that W stays in L2.
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + m[:, None] * K + k[None, :]
    w_ptrs = weight_ptr + n[None, :].to(tl.int64) * K + k[:, None]
    m_mask, n_mask = (m < M)[:, None], (n < N)[None, :]
    if HAS_NORM:
        mean = tl.load(row_stats_ptr + m * 2, mask=m < M, other=0.0)[:, None]
        rstd = tl.load(row_stats_ptr + m * 2 + 1, mask=m < M, other=0.0)[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = start + k < K
        x = tl.load(x_ptrs + start, mask=m_mask & inside[None, :], other=0.0)
        w = tl.load(w_ptrs + start, mask=n_mask & inside[:, None], other=0.0)
        if HAS_NORM:
            gamma = tl.load(norm_weight_ptr + start + k, mask=inside, other=0.0).to(tl.float32)
            normed = (x.to(tl.float32) - mean) * rstd * gamma[None, :]
            if HAS_NORM_BIAS:
                beta = tl.load(norm_bias_ptr + start + k, mask=inside, other=0.0).to(tl.float32)
                normed += beta[None, :]
            x = normed.to(w.dtype)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    epilogue(
        acc, m[:, None], n[None, :], m_mask & n_mask, bias_ptr, residual_ptr, out_ptr, k_pages_ptr,
        v_pages_ptr, slot_mapping_ptr, M, N, HAS_BIAS, GELU, HAS_RESIDUAL, QKV, HEADS, HEAD_SIZE,
        PAGE_SIZE,
    )  # fmt: skip


@dataclass(frozen=True)
class PagedKV:
    """The paged cache that a QKV product writes its keys and values to."""

    k_pages: Tensor  # [P, H, page_size, D], contiguous
    v_pages: Tensor
    slot_mapping: Tensor  # int64 [N]


def fused_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    decode: bool = False,
    pdl: bool,
    paged: PagedKV | None = None,
) -> Tensor:
    """See `Backend.fused_linear` and, with `paged`, `Backend.qkv_to_pages`."""
    assert isinstance(weight, Tensor), "the weight was packed for another backend"
    x = x.contiguous()
    m, k = x.shape
    n = len(weight)
    out = torch.empty(m, n if paged is None else n // 3, dtype=x.dtype, device=x.device)
    # A launch needs a valid pointer even for an argument that it does not use.
    common: dict[str, Any] = {
        "N": n,
        "K": k,
        "HAS_BIAS": bias is not None,
        "GELU": gelu,
        "HAS_RESIDUAL": residual is not None,
        "QKV": paged is not None,
        "HEADS": 1 if paged is None else paged.k_pages.shape[1],
        "HEAD_SIZE": 1 if paged is None else paged.k_pages.shape[3],
        "PAGE_SIZE": 1 if paged is None else paged.k_pages.shape[2],
        "PRECISION": dot_precision(x.dtype),
        **ALWAYS,
    }
    ends = (
        x if residual is None else residual.contiguous(),
        out,
        *((x, x, x) if paged is None else (paged.k_pages, paged.v_pages, paged.slot_mapping)),
        m,
    )
    gamma, beta = (None, None) if norm is None else norm
    common |= {"HAS_NORM": gamma is not None, "HAS_NORM_BIAS": beta is not None}
    norms = (x if gamma is None else gamma, x if beta is None else beta)
    bias_or_x = x if bias is None else bias
    if decode:
        launch = DECODE_FLOAT32 if x.dtype == torch.float32 else DECODE
        whole_row = gamma is None or k <= launch.block_k
        pdl = pdl and can_launch_dependent(x)
        decode_kernel[(ceil_div(n, launch.block_n), ceil_div(m, launch.block_m))](
            x, weight, bias_or_x, x if whole_row else row_stats(x), *norms, *ends, LAYER_NORM_EPS,
            BLOCK_N=launch.block_n, BLOCK_M=launch.block_m, BLOCK_K=launch.block_k,
            SLICES=launch.num_warps, PDL=pdl, num_warps=launch.num_warps, num_stages=2,
            **pdl_option(pdl), **common,
        )  # fmt: skip
    else:
        tile = TILE_FLOAT32 if x.dtype == torch.float32 else TILE
        stats = x if gamma is None else row_stats(x)
        tile_kernel[(ceil_div(m, tile.block_m), ceil_div(n, tile.block_n))](
            x, weight, bias_or_x, stats, *norms, *ends,
            BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
            num_warps=tile.num_warps, num_stages=tile.num_stages, **common,
        )  # fmt: skip
    return out
